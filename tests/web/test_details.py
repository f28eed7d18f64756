"""Small things on the pages: numbers that are no sizes, messages, names, times, titles."""

from __future__ import annotations

import re

import pytest
import requests
from playwright.sync_api import Page, expect

from tests.waiting import PATIENCE_SECS
from tests.web.browser import settled
from tests.web.scene import SOURCE

pytestmark = [pytest.mark.browser, pytest.mark.hub]


def write_bpw(page: Page, text: str) -> None:
    number = page.locator("#dq-bpw input[type=number]")
    number.fill(text)
    number.press("Enter")


def test_an_empty_size_and_one_out_of_range_are_refused_in_words_and_not_changed(field, page):
    settled(page, f"{field.url}/?model={SOURCE}&bpw=4.5")
    expect(page.locator(".dq-tiles")).to_have_count(1)
    write_bpw(page, "")
    expect(page.get_by_role("alert")).to_contain_text("Write the bits per weight as a number")
    expect(page.locator(".dq-tiles")).to_have_count(0)
    write_bpw(page, "20")
    expect(page.get_by_role("alert")).to_contain_text("20 bits per weight cannot be met")
    expect(page.locator("#dq-bpw input[type=number]")).to_have_value("20")


def test_the_slider_starts_at_what_the_smallest_format_stores_and_moves_the_number(field, page):
    settled(page, f"{field.url}/?model={SOURCE}&bpw=4.5")
    expect(page.locator(".dq-tiles")).to_have_count(1)
    slider = page.locator("#dq-slider input[type=range]")
    assert slider.get_attribute("min") == "2.3"
    slider.focus()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#dq-bpw input[type=number]")).to_have_value("4.6")
    expect(page.locator(".dq-tiles dd").first).to_contain_text("4.6")
    write_bpw(page, "3.75")
    expect(slider).to_have_value(re.compile(r"3\.[78]"))


def test_a_message_goes_when_its_reason_is_gone(field, page):
    settled(page, field.url)
    page.get_by_role("button", name="Convert").click()
    expect(page.get_by_role("alert")).to_contain_text("Choose a model first")
    page.get_by_label("Model", exact=True).fill(SOURCE)
    page.keyboard.press("Enter")
    expect(page.locator(".dq-tiles")).to_have_count(1)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_groups_and_folds_have_names_and_states(field, page):
    settled(page, field.url)
    expect(page.get_by_role("group", name="How small")).to_be_visible()
    advanced = page.get_by_role("button", name="Advanced")
    expect(advanced).to_have_attribute("aria-expanded", "false")
    advanced.click()
    expect(advanced).to_have_attribute("aria-expanded", "true")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_list_stays_below_the_head_and_has_an_edge(field, browser, scheme):
    context = browser.new_context(viewport={"width": 1280, "height": 620}, color_scheme=scheme)
    page = context.new_page()
    settled(page, f"{field.url}/?model={SOURCE}&memory=16")
    expect(page.locator(".dq-outcome")).to_be_visible()
    page.locator("#dq-memory input").click()
    options = page.locator("ul.option-list")
    expect(options).to_be_visible()
    assert options.evaluate("each => getComputedStyle(each).borderTopWidth") == "1px"
    head, box = page.locator(".dq-top").bounding_box(), options.bounding_box()
    assert head is not None
    assert box is not None
    assert box["y"] >= head["y"] + head["height"]
    context.close()


def test_every_page_has_a_title_of_its_own(field, page):
    for path, title in (
        ("", "Quantize a model for your Mac"),
        ("board", "Board"),
        ("gallery", "Gallery"),
        ("watcher", "Watcher"),
        ("help", "Help"),
    ):
        settled(page, f"{field.url}/{path}")
        expect(page).to_have_title(f"{title} · dynquant")


def test_times_are_those_of_the_visitors_place(field, browser):
    job_id = field.submit(targets_bpw=(6.6,))
    at = field.board.get(job_id).submitted_at
    context = browser.new_context(timezone_id="Asia/Tokyo", locale="en-GB")
    page = context.new_page()
    settled(page, f"{field.url}/job?job={job_id}")
    time = page.locator(".dq-lead time")
    expect(time).to_have_text(re.compile(rf"{(at.hour + 9) % 24:02}:{at:%M} GMT\+9$"))
    expect(time).to_have_attribute("title", f"{at:%-d %b %H:%M} UTC")
    expect(page.locator(".dq-log time").first).to_have_text(re.compile(r"^\d\d:\d\d:\d\d$"))
    context.close()
    field.board.cancel(job_id)


def test_the_address_where_gradio_describes_an_api_leads_to_ours(field, page):
    settled(page, f"{field.url}/?view=api")
    expect(page).to_have_url(f"{field.url}/help#api")
    expect(page.locator("pre")).to_contain_text(f'Client("{field.url}")')
    expect(page.get_by_role("row", name="/submit")).to_be_visible()
    nav = page.get_by_role("navigation", name="Pages")
    nav.get_by_role("link", name="Convert").click()
    nav.get_by_role("link", name="Help").click()
    expect(page.locator("h1")).to_have_text("Help")
    listed = requests.get(f"{field.url}/gradio_api/info", timeout=PATIENCE_SECS)
    assert listed.ok


def test_one_download_is_one_download(field, page):
    field.hub.add("org/once", {"README.md": b"# once\n"}, downloads=1)
    field.service._searches.forget("")
    settled(page, field.url)
    once = page.get_by_role("listitem").filter(has_text="org/once")
    expect(once).to_contain_text("1 download")
    expect(once).not_to_contain_text("downloads")
