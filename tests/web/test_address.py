"""The form of the Convert page in its address."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

from dynquant.web.pages.address import form_of, query_of
from dynquant.web.pages.choice import BY_MEMORY, DEFAULT_CHOICE, DEFAULT_OTHERS
from tests.web.browser import settled
from tests.web.scene import SOURCE
from tests.web.space import opened_space

pytestmark = [pytest.mark.browser, pytest.mark.hub]

PHONE = {"width": 390, "height": 844}
DESKTOP = {"width": 1280, "height": 900}

FORMS = [
    (DEFAULT_CHOICE, DEFAULT_OTHERS),
    (DEFAULT_CHOICE._replace(model="org/M", bpw=3.25), DEFAULT_OTHERS),
    (DEFAULT_CHOICE._replace(model="org/M", several="3.5, 4.5, 6"), DEFAULT_OTHERS),
    (DEFAULT_CHOICE._replace(way=BY_MEMORY, memory_gib=64, context_tokens=32_768), DEFAULT_OTHERS),
    (
        DEFAULT_CHOICE._replace(bits=["4", "as it is"], groups=["64"], floats=["mxfp4"]),
        DEFAULT_OTHERS._replace(
            calibration="Articles (WikiText-2, training part)",
            destination="you/{model}-{bpw}",
            private=True,
        ),
    ),
]


@pytest.mark.parametrize(("choice", "others"), FORMS)
def test_a_form_comes_back_from_its_address(choice, others):
    assert form_of(query_of(choice, others)) == (choice, others)


def test_the_address_of_an_untouched_form_is_bare_and_that_of_a_choice_is_short():
    assert query_of(DEFAULT_CHOICE, DEFAULT_OTHERS) == ""
    choice = DEFAULT_CHOICE._replace(model="https://huggingface.co/org/M/tree/main")
    assert query_of(choice, DEFAULT_OTHERS) == "model=org/M&bpw=4.5"


def test_the_address_to_notify_may_be_a_secret_and_stays_out():
    others = DEFAULT_OTHERS._replace(notify_url="https://hooks.slack.com/secret")
    assert "secret" not in query_of(DEFAULT_CHOICE, others)


@pytest.mark.parametrize(
    "query",
    [
        "?bpw=",
        "?bpw=nan",
        "?bpw=x&memory=17&context=-1",
        "?bits=1&calibration=/etc&private=yes",
        "%",
    ],
)
def test_what_no_field_takes_is_left_out(query):
    assert form_of(query) == (DEFAULT_CHOICE, DEFAULT_OTHERS)


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_reload_and_the_way_back_from_a_job_keep_the_form(field, browser, viewport):
    context = browser.new_context(viewport=viewport)
    page = context.new_page()
    settled(page, f"{field.url}/?model={SOURCE}&bpw=5.35&context=8192")
    expect(page.locator(".dq-card h2")).to_have_text(SOURCE)
    expect(page.locator(".dq-tiles dd").first).to_contain_text("5.35")
    expect(page.locator(".dq-tiles")).to_contain_text("8,192 tokens")
    number = page.locator("#dq-bpw input[type=number]")
    number.fill("5.6")
    number.press("Enter")
    page.wait_for_url("**bpw=5.6*")
    page.reload()
    expect(page.locator(".dq-tiles dd").first).to_contain_text("5.6")

    page.get_by_role("button", name="Convert").click()
    page.wait_for_url(re.compile(r"/job\?job="))
    page.go_back()
    expect(page.locator(".dq-card h2")).to_have_text(SOURCE)
    expect(page.locator("#dq-bpw input[type=number]")).to_have_value("5.6")
    context.close()


def test_a_shared_link_brings_every_field(field, page):
    settled(
        page,
        f"{field.url}/?__theme=dark&model={SOURCE}&memory=32&bits=4,8&groups=32,64&to=quants",
    )
    expect(page.locator(".dq-card h2")).to_have_text(SOURCE)
    expect(page.get_by_label("Memory of my Mac").first).to_be_checked()
    expect(page.locator("#dq-memory input")).to_have_value("32 GB")
    expect(page.locator("#dq-bpw")).to_be_hidden()
    page.get_by_role("button", name="Advanced").click()
    for name, is_checked in (("4", True), ("8", True), ("2", False), ("128", False)):
        expect(page.get_by_label(name, exact=True)).to_be_checked(checked=is_checked)
    expect(page.get_by_label("Publish to")).to_have_value("quants")
    page.get_by_label("2", exact=True).check()
    page.wait_for_url("**bits=2,4,8*")
    assert parse_qs(urlsplit(page.url).query)["__theme"] == ["dark"]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    with opened_space(tmp_path_factory.mktemp("space")) as space:
        yield space


@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_sign_in_from_the_message_that_asks_for_it_keeps_the_form(space, browser, viewport):
    context = browser.new_context(viewport=viewport)
    page = context.new_page()
    settled(page, f"{space.url}/?model={SOURCE}&bpw=5.4&bits=4,5,6")
    expect(page.locator(".dq-tiles dd").first).to_contain_text("5.4")
    page.get_by_role("button", name="Convert").click()
    message = page.get_by_role("alert").filter(has_text="Sign in with Hugging Face first")
    message.get_by_role("link", name="Sign in with Hugging Face").click()
    page.get_by_role("link", name="Go on as ann").click()
    expect(page.get_by_role("button", name="Sign out (ann)")).to_be_visible()
    expect(page.locator(".dq-tiles dd").first).to_contain_text("5.4")
    assert "bits=4,5,6" in page.url
    page.get_by_role("button", name="Convert").click()
    page.wait_for_url(re.compile(r"/job\?job="))
    assert space.request().targets_bpw == (5.4,)
    context.close()


def test_the_buttons_in_the_head_sign_in_and_out_of_the_same_form(space, browser):
    context = browser.new_context()
    page = context.new_page()
    settled(page, f"{space.url}/?model={SOURCE}&bpw=3.5,6")
    expect(page.locator(".dq-tiles")).to_have_count(2)
    page.get_by_role("button", name="Sign in with Hugging Face").click()
    page.get_by_role("link", name="Go on as bob").click()
    expect(page.locator(".dq-tiles")).to_have_count(2)
    page.get_by_role("button", name="Sign out (bob)").click()
    expect(page.get_by_role("button", name="Sign in with Hugging Face")).to_be_visible()
    expect(page.locator(".dq-tiles")).to_have_count(2)
    context.close()
