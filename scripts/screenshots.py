"""Take a picture of every page: `python -m scripts.screenshots`.

Light and dark, on a desktop and on a phone. Behind the pages stand a real board
and the local Hub of the tests, with jobs in every state.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from playwright.sync_api import Page, sync_playwright

from tests.web.browser import LAUNCH, settled
from tests.web.scene import SOURCE, opened, populated, swept

ROOT = Path(__file__).resolve().parents[1]
RULES = ROOT / "space_config" / "watch.yaml"
OUT = ROOT / "out" / "screenshots"
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
        for size, (width, height) in SIZES.items():
            for scheme in SCHEMES:
                page = browser.new_page(
                    viewport={"width": width, "height": height}, color_scheme=scheme
                )
                for name in _shown(page, field.url, jobs):
                    path = OUT / f"{name}-{size}-{scheme}.png"
                    page.screenshot(path=path, full_page=True)
                    print(path.relative_to(ROOT))
                page.close()
        browser.close()


def _shown(page: Page, url: str, jobs: dict[str, str]) -> Iterator[str]:
    """Bring up one page after the other; the name of each."""
    settled(page, url)
    yield "convert-empty"
    page.get_by_label("Model").first.fill(SOURCE)
    page.keyboard.press("Enter")
    page.locator(".dq-tiles").first.wait_for()
    yield "convert"
    page.get_by_text("Advanced").click()
    page.get_by_text("Calibrate on").wait_for()
    yield "convert-advanced"
    page.get_by_label("Model").first.fill("team/no-such-model")
    page.keyboard.press("Enter")
    page.get_by_text("This model cannot be taken").wait_for()
    yield "convert-refused"
    for name, job_id in jobs.items():
        settled(page, f"{url}/job?job={job_id}")
        page.locator("#dq-job h1, #dq-job .dq-notice").first.wait_for()
        page.wait_for_timeout(600)
        yield f"job-{name}"
    settled(page, f"{url}/board")
    page.locator(".dq-jobs").wait_for()
    yield "board"
    settled(page, f"{url}/gallery")
    page.locator(".dq-family").first.wait_for()
    yield "gallery"
    settled(page, f"{url}/watcher")
    page.locator(".dq-reasons").wait_for()
    page.get_by_role("button", name="Sweep now").wait_for()
    yield "watcher"


if __name__ == "__main__":
    main()
