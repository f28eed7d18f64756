"""Take a picture of every page: `python -m scripts.screenshots`.

Light and dark, on a desktop and on a phone. Behind the pages stand a real board
and the local Hub, with jobs in every state.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from playwright.sync_api import Browser, Locator, Page, ViewportSize, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from dynquant.jobs.job import Job, JobState
from tests.runner.test_live_board import make_job
from tests.web.browser import LAUNCH, settled
from tests.web.scene import SOURCE, make_family, make_request, opened, populated, publish, swept
from tests.web.space import Space, opened_space, signed_in

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "space_config" / "watch.yaml"
OUT = ROOT / "out" / "screenshots"
MACS = (
    {"sku": ["Apple Silicon", "-", "Apple M3 Max"], "mem": 64, "num": 1, "isPrimary": True},
    {"sku": ["Apple Silicon", "-", "Apple M1"], "mem": 16, "num": 1},
)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")


def main() -> None:
    """Write the pictures to `out/screenshots`."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    with (
        TemporaryDirectory() as folder,
        opened(Path(folder), rules=RULES.read_text(encoding="utf-8")) as field,
        sync_playwright() as player,
    ):
        jobs = populated(field)
        swept(field)
        browser = player.chromium.launch(**LAUNCH)
        _take(browser, lambda page: _shown(page, field.url, jobs))
        browser.close()
    with (
        TemporaryDirectory() as folder,
        opened_space(Path(folder)) as space,
        sync_playwright() as player,
    ):
        space.hub.hardware["ann"].extend(MACS)
        browser = player.chromium.launch(**LAUNCH)
        _take(browser, lambda page: _shown_of_space(page, space))
        job = _finished(space)
        space.post(job)
        _take(browser, lambda page: _shown_to_owner(page, space, job))
        browser.close()


def _take(browser: Browser, show: Callable[[Page], Iterator[str]]) -> None:
    for size, (width, height) in SIZES.items():
        for scheme in SCHEMES:
            viewport: ViewportSize = {"width": width, "height": height}
            page = browser.new_page(viewport=viewport, color_scheme=scheme)
            for name in show(page):
                path = OUT / f"{name}-{size}-{scheme}.png"
                page.screenshot(path=path, full_page=True)
                print(path.relative_to(ROOT))
            page.close()


def _shown(page: Page, url: str, jobs: dict[str, str]) -> Iterator[str]:
    """Bring up one page after the other; the name of each."""
    settled(page, url)
    yield "convert-empty"
    model = page.get_by_label("Model", exact=True)
    model.press_sequentially("sample", delay=60)
    page.get_by_role("option").first.wait_for()
    yield "convert-search"
    page.get_by_role("option").first.click()
    page.locator(".dq-tiles").first.wait_for()
    yield "convert"
    page.get_by_text("Advanced").click()
    _fill(page.get_by_label("Several sizes at once"), "3.5, 4.5", page.locator(".dq-tiles").nth(1))
    yield "convert-advanced"
    settled(page, url)
    model.fill("team/no-such-model")
    page.keyboard.press("Enter")
    page.get_by_text("This model cannot be converted").wait_for()
    yield "convert-refused"
    for name, job_id in jobs.items():
        settled(page, f"{url}/job?job={job_id}")
        page.locator("#dq-job h1, #dq-job .dq-notice").first.wait_for()
        if name.startswith("published"):
            page.locator(".dq-strip").first.wait_for(state="attached")
        page.wait_for_timeout(600)
        yield f"job-{name}"
    settled(page, f"{url}/job?job={jobs['published-one']}")
    page.get_by_role("button", name="The card").click()
    page.get_by_text("How it was made").wait_for()
    page.wait_for_timeout(600)
    yield "job-card"
    settled(page, f"{url}/board")
    page.locator(".dq-jobs").wait_for()
    page.get_by_text("GB", exact=False).first.wait_for()
    yield "board"
    settled(page, f"{url}/gallery")
    page.locator(".dq-family").first.wait_for()
    page.get_by_text("How to run them").first.click()
    yield "gallery"
    settled(page, f"{url}/watcher")
    page.locator(".dq-reasons").wait_for()
    page.get_by_role("button", name="Sweep now").wait_for()
    yield "watcher"


def _fill(field: Locator, text: str, shown: Locator) -> None:
    """Fill `field` until `shown` is there: what is typed as it appears, Gradio may take back."""
    for _ in range(5):
        field.fill("")
        field.fill(text)
        with suppress(PlaywrightTimeout):
            shown.wait_for(timeout=6_000)
            return
    shown.wait_for()


def _shown_of_space(page: Page, space: Space) -> Iterator[str]:
    """Pages of a Space that has just started, before and after a visitor signs in."""
    settled(page, space.url)
    page.get_by_role("button", name="Sign in with Hugging Face").wait_for()
    yield "space-convert"
    settled(page, f"{space.url}/board")
    page.locator(".dq-empty").first.wait_for()
    yield "space-board-empty"
    settled(page, f"{space.url}/gallery")
    page.locator(".dq-empty").first.wait_for()
    yield "space-gallery-empty"
    signed_in(page, space, "ann")
    yield "space-signed-in"
    page.get_by_label("Model", exact=True).fill(SOURCE)
    page.keyboard.press("Enter")
    page.locator(".dq-tiles").first.wait_for()
    page.get_by_label("Memory of my Mac").first.check()
    page.locator("#dq-mine p").wait_for()
    page.wait_for_timeout(600)
    yield "space-my-mac"
    page.locator("#dq-memory input").click()
    page.wait_for_timeout(600)
    yield "space-my-macs"
    page.context.clear_cookies()
    signed_in(page, space, "bob")
    page.get_by_label("Memory of my Mac").first.check()
    page.locator("#dq-mine p").wait_for()
    page.wait_for_timeout(600)
    yield "space-no-mac"


def _shown_to_owner(page: Page, space: Space, job: Job) -> Iterator[str]:
    """The page of a finished job, for the visitor that requested it."""
    signed_in(page, space, "ann")
    settled(page, f"{space.url}/job?job={job.id}")
    page.get_by_role("button", name="Copy to my account").wait_for()
    page.locator(".dq-strip").first.wait_for()
    yield "space-copy"


def _finished(space: Space) -> Job:
    """A job that a runner of the Space has done."""
    repo = publish(space.hub, make_family(SOURCE)[1])
    request = make_request(model=SOURCE, revision="c0ffee")
    now = datetime.now(UTC)
    return make_job(
        request=request,
        state=JobState.PUBLISHED,
        runner="mac-studio",
        results=(repo,),
        started_at=now - timedelta(minutes=9),
        ended_at=now,
    )


if __name__ == "__main__":
    main()
