"""The Convert page knows the Macs of a signed-in visitor, if the profile shows them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Locator, Page, expect

from dynquant.hub.hardware import Mac
from dynquant.report.quality_summary import MAC_MEMORY_GIB
from dynquant.web.pages.convert_view import macs_note, memory_choices
from tests.watch.scene import model_files
from tests.web.browser import settled
from tests.web.space import Space, opened_space, visiting

pytestmark = [pytest.mark.browser, pytest.mark.hub]

LARGE = "team/large"
MACS = (
    {"sku": ["GPU", "NVIDIA", "RTX 4090"], "mem": 24, "num": 2},
    {"sku": ["Apple Silicon", "-", "Apple M3 Max"], "mem": 64, "num": 1},
    {"sku": ["Apple Silicon", "-", "<b>M9</b>"], "mem": 20, "num": 3, "isPrimary": True},
)


@pytest.fixture(scope="module")
def space(tmp_path_factory) -> Iterator[Space]:
    with opened_space(tmp_path_factory.mktemp("space")) as space:
        for name in ("mia", "max", "ida", "hal", "eve"):
            macs = MACS[:2] if name in {"max", "ida"} else MACS
            space.hub.add_user(name, token=f"hf_{name}", hardware=macs)
        space.hub.discreet.add("hal")
        # Of a gated model the number of parameters is all that a stranger knows, and needs.
        space.hub.add(LARGE, model_files(30 * 10**9), gated="manual")
        yield space


def by_memory(page: Page) -> Locator:
    """Turn to the memory of a Mac; the field for it."""
    page.get_by_label("Memory of my Mac").first.check()
    return page.locator("#dq-memory input")


def hold_back(page: Page, words: str) -> None:
    """Keep back what the pages answer with `words` in it, from the next visit to `let_go`."""
    page.add_init_script(_GATE.replace("WORDS", words))


def let_go(page: Page) -> None:
    page.evaluate("window.letGo()")


_GATE = """{
  const ask = window.fetch, gate = new Promise((open) => { window.letGo = open; });
  window.fetch = async (...asked) => {
    const answer = await ask(...asked);
    const isOne = answer.url.includes("/gradio_api/run/");
    if (isOne && (await answer.clone().text()).includes("WORDS")) await gate;
    return answer;
  };
}"""


def take(page: Page, choice: str) -> None:
    page.locator("#dq-memory input").click()
    page.get_by_role("option", name=choice, exact=True).click()


def choose_model(page: Page) -> Locator:
    """Choose a model; the bits per weight that are offered."""
    page.get_by_label("Model", exact=True).fill(LARGE)
    page.keyboard.press("Enter")
    return page.locator(".dq-tiles dd").first


def test_who_has_signed_in_finds_their_mac_chosen_and_the_answer_is_for_it(space, browser):
    with visiting(browser, space, "mia") as page:
        memory = by_memory(page)
        expect(memory).to_have_value("20 GB (your <b>M9</b>)")
        expect(page.locator("#dq-mine")).to_have_text(
            "Your Macs, from your Hugging Face profile: "
            "<b>M9</b> with 20 GB, Apple M3 Max with 64 GB."
        )
        offered = choose_model(page)
        expect(offered).to_contain_text("3.6")
        take(page, "64 GB (your Apple M3 Max)")
        expect(offered).to_contain_text("8.5")
        take(page, "16 GB")
        expect(offered).to_contain_text("2.9")
        page.get_by_label("Bits per weight").first.check()
        expect(offered).to_contain_text("4.5")
        expect(page.locator("#dq-mine")).to_be_hidden()
        # Left alone it stays for the next visit, too, and the Hub is not asked again.
        settled(page, space.url)
        expect(by_memory(page)).to_have_value("20 GB (your <b>M9</b>)")
        assert len(space.hub.asked("GET /oauth/userinfo")) == 1


@pytest.mark.parametrize("choice", ["96 GB", "16 GB"])
def test_what_was_chosen_by_hand_before_the_hub_answered_stays(space, browser, choice):
    with visiting(browser, space, "max") as page:
        hold_back(page, "Apple M3 Max")
        settled(page, space.url)
        memory = by_memory(page)
        take(page, choice)
        offered = choose_model(page)
        expect(offered).to_contain_text("8.5" if choice == "96 GB" else "2.9")
        let_go(page)
        expect(page.locator("#dq-mine")).to_have_text(
            "Your Apple M3 Max with 64 GB, from your Hugging Face profile."
        )
        page.wait_for_timeout(500)
        expect(memory).to_have_value(choice)
        expect(offered).to_contain_text("8.5" if choice == "96 GB" else "2.9")
        page.locator("#dq-memory input").click()
        expect(page.get_by_role("option").first).to_have_text(
            re.compile("64 GB .your Apple M3 Max")
        )


def test_a_mac_that_becomes_known_late_is_chosen_and_the_answer_follows(space, browser):
    with visiting(browser, space, "ida") as page:
        hold_back(page, "Apple M3 Max")
        settled(page, space.url)
        memory = by_memory(page)
        offered = choose_model(page)
        expect(memory).to_have_value("16 GB")
        expect(offered).to_contain_text("2.9")
        let_go(page)
        expect(memory).to_have_value("64 GB (your Apple M3 Max)")
        expect(offered).to_contain_text("8.5")


def test_who_does_not_show_their_hardware_gets_the_plain_page_and_a_hint(space, browser):
    with visiting(browser, space, "hal") as page:
        expect(by_memory(page)).to_have_value("16 GB")
        expect(page.locator("#dq-mine")).to_have_text(
            "Show your Mac on your Hugging Face profile to have it chosen here."
        )
        hint = page.get_by_role("link", name="Show your Mac")
        expect(hint).to_have_attribute("href", f"{space.hub.url}/settings/hardware")
        page.locator("#dq-memory input").click()
        expect(page.get_by_role("option").first).to_have_text(re.compile(r"\b8 GB"))


def test_a_hub_that_does_not_tell_of_hardware_is_in_nobodys_way(space, browser):
    fault = space.hub.fail("GET /oauth/userinfo")
    with visiting(browser, space, "eve") as page:
        expect(by_memory(page)).to_have_value("16 GB")
        expect(choose_model(page)).to_contain_text("2.9")
        expect(page.locator("#dq-mine")).to_be_hidden()
    space.hub.faults.remove(fault)


def test_who_has_not_signed_in_gets_the_plain_page_and_nobody_is_asked(space, browser):
    space.hub.requests.clear()
    with visiting(browser, space) as page:
        expect(by_memory(page)).to_have_value("16 GB")
        expect(page.locator("#dq-mine")).to_be_hidden()
        assert not space.hub.asked("GET /oauth/userinfo")


def test_macs_with_as_much_memory_are_one_choice_and_their_names_are_text():
    macs = [Mac(name=name, memory_gib=gib) for name, gib in (("A", 16), ("B", 20), ("<i>", 16))]
    assert memory_choices(macs)[:3] == [
        ("16 GB (your A, <i>)", 16),
        ("20 GB (your B)", 20),
        ("8 GB", 8),
    ]
    assert [gib for _, gib in memory_choices(())] == sorted(MAC_MEMORY_GIB)
    assert "&lt;i&gt; with 16&nbsp;GB" in macs_note(macs, settings_url="https://x.org")
