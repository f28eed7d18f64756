"""The Convert page before "Convert" is pressed: models to choose, the destination, refusals."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.web.browser import settled
from tests.web.scene import SOURCE

pytestmark = [pytest.mark.browser, pytest.mark.hub]


@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_where_nothing_is_chosen_the_models_of_the_hub_are_a_click_away(field, browser, width):
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    settled(page, field.url)
    page.get_by_role("list", name="Models to choose").get_by_role("link", name=SOURCE).click()
    expect(page.locator(".dq-card h2")).to_have_text(SOURCE)
    page.wait_for_url(f"**/?model={SOURCE}&bpw=4.5")
    context.close()


def test_pages_over_another_hub_name_that_hub_and_not_hugging_face(field, page):
    settled(page, f"{field.url}/?model={SOURCE}")
    expect(page.locator(".dq-tiles")).to_have_count(1)
    said = page.locator("body").inner_text()
    assert "Hugging Face" not in said
    assert "huggingface.co" not in said
    link = page.get_by_role("link", name=field.hub.url.partition("://")[2], exact=True)
    expect(link).to_have_attribute("href", re.compile(field.hub.url))


def test_the_destination_and_its_readers_follow_the_form(field, page):
    settled(page, f"{field.url}/?model={SOURCE}&bpw=4.75")
    outcome = page.locator(".dq-outcome")
    expect(outcome).to_contain_text("Published asquants/team__sample-2m-MLX-4.75bpw")
    expect(outcome).to_contain_text("everyone (public)")
    expect(outcome).to_contain_text("the original names none")
    page.get_by_role("button", name="Advanced").click()
    page.get_by_label("Publish as a private model").check()
    expect(outcome).to_contain_text("only quants and accounts that quants admits (private)")
    page.get_by_label("Publish to").fill("team/{model}-{bpw}")
    expect(outcome).to_contain_text("Published asteam/sample-2m-4.75")
    page.get_by_label("Publish to").fill("a/b/c")
    expect(page.get_by_role("alert")).to_contain_text("cannot be the id of a repo")


def test_a_destination_that_cannot_be_written_is_refused_before_it_is_queued(field, page):
    field.hub.add("quants/taken", {"README.md": b"# by hand\n"})
    for place, said in (
        ("somebody", "cannot publish as 'somebody'"),
        ("quants/taken", "holds files that dynquant did not publish"),
    ):
        settled(page, f"{field.url}/?model={SOURCE}&bpw=7.25&to={place}")
        expect(page.locator(".dq-outcome")).to_contain_text(place)
        page.get_by_role("button", name="Convert").click()
        expect(page.get_by_role("alert").filter(has_text="Not queued")).to_contain_text(said)
    assert not any(job.request.targets_bpw == (7.25,) for job in field.board.list())
