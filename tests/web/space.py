"""A Space of its own process, which visitors sign in to, and runners post to."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests
from gradio_client import Client
from playwright.sync_api import Browser, Page, expect

from dynquant.hub.inbox import HubInbox
from dynquant.jobs.job import Job
from dynquant.jobs.request import JobRequest
from dynquant.runner.live_board import board_snapshot
from local_hub import LocalHub
from local_hub.app import app
from tests.hub import duplicating
from tests.runner.test_live_board import make_runner
from tests.waiting import PATIENCE_SECS
from tests.web import sign_in
from tests.web.browser import settled
from tests.web.children import answering, running
from tests.web.scene import SAMPLE, SOURCE

SECRET = "a-secret-canary-of-the-space"
INBOX = "quants/inbox"


@dataclass
class Space:
    """A Space that can be restarted, its inbox, and what a runner would post to it."""

    hub: LocalHub
    url: str
    environment: dict[str, str]
    log: Path | None = None
    exits: ExitStack = field(default_factory=ExitStack)

    @contextmanager
    def started(self) -> Iterator[None]:
        with running([sys.executable, "app.py"], self.environment, log=self.log) as process:
            answering(self.url, process)
            yield

    def restart(self) -> None:
        self.exits.close()
        self.exits.enter_context(self.started())

    def post(self, *jobs: Job, secret: str = SECRET) -> int:
        board = {"runner_id": "mac-studio", **board_snapshot(jobs, [make_runner()])}
        return requests.post(
            f"{self.url}/runner/board",
            json=board,
            headers={"Authorization": f"Bearer {secret}"},
            timeout=PATIENCE_SECS,
        ).status_code

    def request(self) -> JobRequest:
        """The latest request in the inbox."""
        inbox = HubInbox(INBOX, endpoint=self.hub.url, token="hf_quants")
        found = [entry.request for entry in inbox.pending() if entry.request is not None]
        return found[-1]


@contextmanager
def opened_space(home: Path, *, log: Path | None = None) -> Iterator[Space]:
    """A Space with a Hub of its own, on which `ann`, `bob` and `quants` have accounts.

    Args:
        home: Its folder.
        log: File for its output; None for the output of this process.
    """
    sign_in.install()
    if duplicating.router.routes[0] not in app.router.routes:
        app.router.routes[:0] = duplicating.router.routes
    with LocalHub() as hub, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        for name in ("ann", "bob", "quants"):
            hub.add_user(name, token=f"hf_{name}")
        hub.add(SOURCE, SAMPLE)
        hub.add("quants/secret", SAMPLE, private=True)
        space = Space(
            hub,
            f"http://127.0.0.1:{port}",
            {
                **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
                **sign_in.CLIENT,
                "OAUTH_SCOPES": "openid profile",
                "OPENID_PROVIDER_URL": hub.url,
                "SYSTEM": "spaces",
                "SPACE_ID": "quants/dynquant",
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(home / "hf"),
                "HF_HUB_DISABLE_XET": "1",
                "HF_TOKEN": "hf_quants",
                "DYNQUANT_HOME": str(home),
                "DYNQUANT_INBOX_REPO": INBOX,
                "DYNQUANT_SPACE_SECRET": SECRET,
                "DYNQUANT_PUBLISH_TO": "quants",
                "GRADIO_SERVER_NAME": "127.0.0.1",
                "GRADIO_SERVER_PORT": str(port),
                "GRADIO_ANALYTICS_ENABLED": "False",
            },
            log,
        )
        with space.exits:
            space.restart()
            yield space


@contextmanager
def visiting(browser: Browser, space: Space, user: str | None = None) -> Iterator[Page]:
    """A visitor with a browser of their own, signed in as `user`."""
    context = browser.new_context()
    try:
        page = context.new_page()
        settled(page, space.url)
        if user is not None:
            signed_in(page, space, user)
        yield page
    finally:
        context.close()


def signed_in(page: Page, space: Space, user: str) -> None:
    """Sign in with the Hub as `user`."""
    settled(page, space.url)
    page.get_by_role("button", name="Sign in with Hugging Face").click()
    page.get_by_role("link", name=f"Go on as {user}").click()
    expect(page.get_by_role("button", name=f"Sign out ({user})")).to_be_visible()


@contextmanager
def asking(space: Space, token: str | None) -> Iterator[Client]:
    """A program with a token."""
    options = {"timeout": PATIENCE_SECS}
    with closing(
        Client(space.url, oauth_token=token, verbose=False, httpx_kwargs=options)
    ) as client:
        yield client
