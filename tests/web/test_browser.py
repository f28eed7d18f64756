"""The pages as people use them, in Chromium."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from dynquant.jobs.job import JobState, Outcome, StepProgress
from tests.report.card_factories import make_facts
from tests.web.browser import settled
from tests.web.scene import SOURCE, make_family

pytestmark = [pytest.mark.browser, pytest.mark.hub]


def choose(page: Page, url: str, model: str = SOURCE) -> None:
    settled(page, url)
    page.get_by_label("Model", exact=True).fill(model)
    page.keyboard.press("Enter")


def set_bpw(page: Page, bpw: float) -> None:
    number = page.locator("#dq-bpw input[type=number]")
    number.fill(str(bpw))
    number.press("Enter")
    expect(page.locator(".dq-tiles dd").first).to_contain_text(f"{bpw:g}")


def test_a_model_is_asked_for_watched_and_cancelled(field, page):
    choose(page, field.url)
    expect(page.locator(".dq-card h2")).to_have_text(SOURCE)
    set_bpw(page, 5.4)
    expect(page.locator(".dq-expect")).to_contain_text("rule of thumb")
    expect(page.locator(".dq-wait")).to_contain_text("No runner is running")
    page.get_by_role("button", name="Convert").dblclick()

    page.wait_for_url(re.compile(r"/job\?job=[0-9a-f]{20}$"))
    expect(page.locator("#dq-job")).to_contain_text("number 1 in the queue")
    job = field.board.list()[0]
    assert job.request.targets_bpw == (5.4,)
    assert sum(each.request.targets_bpw == (5.4,) for each in field.board.list()) == 1

    session = field.run(job.id, StepProgress(step="download", fraction=0.25))
    expect(page.get_by_role("progressbar", name="Download it")).to_have_attribute(
        "aria-valuenow", "25"
    )
    assert field.store.begin_step(job.id, "measure", session=session)
    field.store.report(job.id, StepProgress(step="measure", fraction=0.5), session=session)
    expect(page.locator(".dq-now")).to_contain_text("Measure every layer")
    page.reload()
    expect(page.locator(".dq-now")).to_contain_text("50 %")
    whole = page.get_by_role("progressbar", name="The whole job")
    expect(whole).to_have_attribute("aria-valuenow", "17")
    expect(page.locator(".dq-whole")).to_contain_text("17 % of the job")

    page.get_by_role("button", name="Cancel this job").click()
    page.locator("h1").click()  # a second thought
    page.get_by_role("button", name="Cancel this job").click()
    page.get_by_role("button", name="Really cancel it?").click()
    expect(page.locator("#dq-job .dq-tag")).to_have_text("Cancelled")
    assert field.board.get(job.id).state is JobState.CANCELLED
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#dq-job")).to_contain_text("attempt 2")
    field.registry.leave(session)
    field.board.cancel(job.id)


def test_a_finished_job_shows_its_figures_pictures_and_card(field, page):
    job_id = field.submit(targets_bpw=(3.5, 4.5))
    session = field.run(job_id, StepProgress(step="publish"))
    results = field.publish(make_family()[:2])
    field.end(job_id, Outcome(state=JobState.PUBLISHED, results=results), session=session)

    settled(page, f"{field.url}/?job={job_id}")
    expect(page).to_have_url(f"{field.url}/job?job={job_id}")
    expect(page.locator("#dq-job .dq-tag")).to_have_text("Published")
    expect(page).to_have_title("Qwen/Qwen3-0.6B · dynquant")
    expect(page.get_by_role("link", name=results[1].repo_id)).to_have_attribute(
        "href", f"{field.hub.url}/{results[1].repo_id}"
    )
    table = page.get_by_role("region", name="Quality beside the original")
    expect(table).to_contain_text("Uniform 4-bit, group 64")
    expect(table).to_contain_text("0.00653 ± 0.00021")
    expect(page.locator(".dq-ladder .dq-only-light")).to_be_visible()
    page.get_by_text("Bits of each layer").first.click()
    strip = page.get_by_role("img", name=re.compile("^q_proj: 4")).first
    expect(strip).to_be_visible()
    assert strip.locator("rect").count() == 28
    page.get_by_role("button", name="The card").click()
    expect(page.locator("#dq-card")).to_contain_text("How it was made")
    pictures = page.locator(".dq-only-light")
    assert pictures.count() == 3
    assert all(
        pictures.nth(i).evaluate("image => image.decode().then(() => image.naturalWidth)") == 900
        for i in range(pictures.count())
    )
    expect(page.get_by_role("button", name="Cancel this job")).to_have_count(0)


def test_the_board_shows_what_there_is_and_filters_it(field, page):
    field.submit(model="org/<img src=x onerror=alert(1)>", targets_bpw=(6.1,), requester="eve")
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    settled(page, f"{field.url}/board")
    expect(page.locator("#dq-board")).to_contain_text("org/<img src=x onerror=alert(1)>")
    page.get_by_label("Model or person").fill("eve")
    expect(page.locator(".dq-jobs li")).to_have_count(1)
    page.get_by_text("Refused or failed").click()
    expect(page.locator("#dq-board")).to_contain_text("Nothing matches")


def test_the_gallery_shows_finished_models_by_their_original(field, page):
    field.publish(make_family("org/Other")[1:3])
    field.service.finished_models._lists.forget("")
    settled(page, f"{field.url}/gallery")
    family = page.locator(".dq-family", has_text="org/Other")
    expect(family.locator("tbody tr")).to_have_count(2)
    expect(page).to_have_title("Gallery · dynquant")
    expect(family.locator("circle")).to_have_count(2)
    family.get_by_text("How to run them").click()
    expect(family.locator("pre").first).to_contain_text("mlx_lm.chat --model quants/Other-MLX")


def test_what_cannot_work_is_said_before_anything_is_queued(field, page):
    choose(page, field.url, "team/missing")
    expect(page.get_by_role("alert")).to_contain_text("There is no model 'team/missing'")
    choose(page, field.url)
    page.get_by_role("button", name="Advanced").click()
    page.get_by_label("Several sizes at once").fill("3.5, 99")
    expect(page.get_by_role("alert")).to_contain_text("99 bits per weight cannot be met")
    page.get_by_label("Several sizes at once").fill("3.5, 4.5")
    expect(page.locator(".dq-tiles")).to_have_count(2)


def test_a_size_is_found_for_the_memory_of_a_mac(field, page):
    choose(page, field.url)
    expect(page.locator(".dq-tiles")).to_have_count(1)
    page.get_by_label("Memory of my Mac").check()
    expect(page.locator(".dq-tiles dd").first).to_contain_text("8.5")


def test_typing_finds_models_on_the_hub(field, page):
    settled(page, field.url)
    page.get_by_label("Model", exact=True).press_sequentially("sample", delay=40)
    page.get_by_role("option").filter(has_text=f"{SOURCE} · 2.55 M parameters").click()
    expect(page.locator(".dq-card h2")).to_have_text(SOURCE)


def test_models_are_offered_before_anything_is_typed(field, page):
    card = b"---\npipeline_tag: text-generation\n---\n"
    field.hub.add("org/popular", {"README.md": card}, downloads=7_000_000)
    field.service._searches.forget("")
    settled(page, field.url)
    page.get_by_label("Model", exact=True).click()
    expect(page.get_by_role("option").first).to_contain_text("org/popular · 7.00 M downloads")


def test_an_address_that_was_pasted_with_spaces_around_it_is_understood(field, page):
    choose(page, field.url, f"  https://huggingface.co/{SOURCE}/tree/main ")
    expect(page.locator(".dq-card h2")).to_have_text(SOURCE)
    choose(page, field.url, "two words")
    expect(page.get_by_role("alert")).to_contain_text("not the name of a model")


def test_with_fewer_formats_what_they_cannot_meet_is_said_at_once(field, page):
    choose(page, field.url)
    expect(page.locator(".dq-tiles")).to_have_count(1)
    page.get_by_role("button", name="Advanced").click()
    for bits in ("2", "3", "4"):
        page.get_by_label(bits, exact=True).uncheck()
    expect(page.get_by_role("alert")).to_contain_text("allows about 5.51")
    set_bpw(page, 6.0)
    page.get_by_role("button", name="Convert").click()
    page.wait_for_url("**/job?job=*")
    menu = field.board.get(page.url.rpartition("=")[2]).request.options.to_json()["menu"]
    assert isinstance(menu, str)
    assert set(menu.split(",")) == {
        *(f"{bits}g{group}" for bits in (5, 6, 8) for group in (32, 64, 128)),
        "unquantized",
    }


def test_markup_in_a_model_and_its_card_is_text_and_runs_nowhere(field, page):
    evil = "<img src=x onerror=alert(1)>"
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    job_id = field.submit(targets_bpw=(6.4,), model=f"org/{evil}", requester=f"eve{evil}")
    session = field.run(job_id, StepProgress(step="publish", sentence=evil))
    facts = make_facts(
        name="Evil-MLX-4.5bpw",
        source=f"org/{evil}",
        notes=(f"{evil} <script>alert(2)</script> [press me](javascript:alert(3))",),
        variants=(),
    )
    results = field.publish([facts])
    field.end(job_id, Outcome(state=JobState.PUBLISHED, results=results), session=session)
    field.service.finished_models._lists.forget("")
    settled(page, f"{field.url}/job?job={job_id}")
    expect(page.locator("#dq-job h1")).to_have_text(f"org/{evil}")
    page.get_by_role("button", name="The card").click()
    expect(page.locator("#dq-card")).to_contain_text("How it was made")
    assert page.locator("[onerror], #dq-card script, a[href^='javascript:']").count() == 0
    settled(page, f"{field.url}/gallery")
    expect(page.locator(".dq-family", has_text=f"org/{evil}")).to_be_visible()
    assert page.locator("[onerror]").count() == 0


def test_a_runner_that_has_gone_is_away_and_jobs_wait_for_it(field, page):
    session = field.registry.join(
        "mac-mini", memory_bytes=16 * 10**9, num_slots=1, heartbeat_secs=0.0, chip="Apple M4"
    )
    settled(page, f"{field.url}/board")
    row = page.get_by_role("row", name=re.compile("mac-mini"))
    expect(row).to_contain_text("Ready")
    for words in ("Apple M4", "16.0 GB", "0 of 1", "just now"):
        expect(row).to_contain_text(words)
    field.registry.leave(session)
    expect(row).to_contain_text("Away")
    job_id = field.submit(targets_bpw=(6.5,))
    settled(page, f"{field.url}/job?job={job_id}")
    expect(page.locator("#dq-job")).to_contain_text("waits for a runner: none is running")
    field.board.cancel(job_id)


def test_the_page_is_worked_by_keyboard_alone(field, page):
    settled(page, field.url)
    seen: list[str] = []
    for _ in range(20):
        page.keyboard.press("Tab")
        focused = page.evaluate(_FOCUSED)
        assert focused["is_visible"], focused
        seen.append(focused["name"])
        if focused["name"] == "Model":
            page.keyboard.type(SOURCE)
            page.keyboard.press("Enter")
            expect(page.locator(".dq-card h2")).to_have_text(SOURCE)
        if focused["name"] == "Convert" and focused["tag"] == "BUTTON":
            break
    order = ["dynquant", "Convert", "Board", "Gallery", "Model", "Bits per weight"]
    assert [name for name in seen if name in order][: len(order)] == order
    assert seen[-2].startswith("Advanced")
    assert seen[-1] == "Convert"


_FOCUSED = """() => {
  const e = document.activeElement, around = [];
  const label = e.getAttribute("aria-label") || e.labels?.[0]?.innerText || e.innerText || "";
  for (let each = e; around.length < 4; each = each.parentElement) around.push(each);
  const is_visible = around.some((each) => getComputedStyle(each).outlineStyle !== "none");
  return { tag: e.tagName, name: label.trim(), is_visible, html: e.outerHTML.slice(0, 200) };
}"""


def test_everything_that_can_be_used_has_a_name(field, page):
    for path in ("", "board", "gallery"):
        settled(page, f"{field.url}/{path}")
        if not path:
            page.get_by_role("button", name="Advanced").click()
            page.get_by_label("Calibrate on").wait_for()
        nameless = page.evaluate(_NAMELESS)
        assert nameless == [], path
        assert page.locator("h1").count() == 1


_NAMELESS = """() => [...document.querySelectorAll("a, button, input, textarea, summary")]
  .filter((e) => e.checkVisibility())
  .filter((e) => !(e.ariaLabel || e.title || e.innerText || e.labels?.[0]?.innerText || "").trim())
  .map((e) => e.outerHTML.slice(0, 200))"""


def test_a_job_that_there_is_not_is_said_to_be_none(field, page):
    settled(page, f"{field.url}/job?job={'0' * 20}")
    expect(page.get_by_role("alert")).to_contain_text("There is no job")
    settled(page, f"{field.url}/job?job=<script>")
    expect(page.locator("#dq-job")).to_contain_text("No job named")


def test_two_visitors_see_the_same_job(field, browser, page):
    job_id = field.submit(targets_bpw=(6.2,))
    other = browser.new_page()
    for visitor in (page, other):
        settled(visitor, f"{field.url}/job?job={job_id}")
        expect(visitor.locator("#dq-job .dq-tag")).to_have_text("Waiting")
    page.get_by_role("button", name="Cancel this job").click()
    page.get_by_role("button", name="Really cancel it?").click()
    for visitor in (page, other):
        expect(visitor.locator("#dq-job .dq-tag")).to_have_text("Cancelled")
    other.close()


def test_the_pages_fit_on_a_phone(field, browser):
    context = browser.new_context(viewport={"width": 390, "height": 844})
    phone = context.new_page()
    job_id = field.submit(targets_bpw=(6.3,))
    for path in ("", "board", "gallery", f"job?job={job_id}"):
        settled(phone, f"{field.url}/{path}")
        phone.wait_for_timeout(300)
        width = phone.evaluate("document.documentElement.scrollWidth")
        assert width <= 390, path
        cut_off = phone.evaluate(
            "[...document.querySelectorAll('.dq-table')].filter(e => e.scrollWidth > 390).length"
        )
        assert cut_off == 0, path
    context.close()
