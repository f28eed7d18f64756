"""Debian's Chromium, as the tests and the screenshots use it."""

from __future__ import annotations

from typing import Any

from playwright.sync_api import Page, expect

from tests.waiting import PATIENCE_SECS

PATIENCE_MSECS = 1_000 * PATIENCE_SECS
expect.set_options(timeout=PATIENCE_MSECS)

LAUNCH: dict[str, Any] = {
    "executable_path": "/usr/bin/chromium",
    "args": [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ],
}


def settled(page: Page, url: str) -> None:
    """Open a page and wait until Gradio has drawn it; what is not from here is not fetched."""
    page.route(lambda other: not other.startswith("http://127.0.0.1"), _abort)
    page.goto(url)
    page.locator(".dq-top").wait_for()
    page.get_by_text("Loading...", exact=True).wait_for(state="hidden")


def _abort(route: Any) -> None:
    route.abort()
