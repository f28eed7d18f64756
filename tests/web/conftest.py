from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_SECS

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from gradio_client import Client
from huggingface_hub import constants
from playwright.sync_api import Browser, Page, sync_playwright

from tests.hub.conftest import hub, pauses
from tests.web.browser import LAUNCH, PATIENCE_MSECS
from tests.web.scene import Field, opened

__all__ = ["hub", "pauses"]


def pytest_configure(config: pytest.Config) -> None:
    # Gradio and its client leave their event loops, with a pair of sockets each, to the collector.
    config.addinivalue_line("filterwarnings", "ignore:unclosed event loop:ResourceWarning")
    sockets = "ignore:unclosed <socket.socket fd=[0-9]+, family=1,:ResourceWarning"
    config.addinivalue_line("filterwarnings", sockets)


@pytest.fixture(scope="module", autouse=True)
def nobody(tmp_path_factory) -> Iterator[None]:
    """No token of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        no_token = tmp_path_factory.mktemp("home") / "token"
        patch.setattr(constants, "HF_TOKEN_PATH", str(no_token))
        yield


@pytest.fixture(scope="module")
def field(tmp_path_factory) -> Iterator[Field]:
    """The pages on one's own machine; the tests of a module share them."""
    with opened(tmp_path_factory.mktemp("field")) as field:
        yield field
    gc.collect()  # the loops that Gradio left, while their warnings are still ignored


@pytest.fixture(scope="module")
def client(field) -> Iterator[Client]:
    client = Client(field.url, verbose=False, httpx_kwargs={"timeout": PATIENCE_SECS})
    yield client
    client.close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if not Path(LAUNCH["executable_path"]).exists():
        pytest.skip(f"there is no {LAUNCH['executable_path']}")
    with sync_playwright() as player:
        browser = player.chromium.launch(**LAUNCH)
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """A visitor with a browser of their own."""
    context = browser.new_context()
    try:
        context.set_default_timeout(PATIENCE_MSECS)
        yield context.new_page()
    finally:
        context.close()
