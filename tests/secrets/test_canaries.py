"""Canary secrets through every path, then a search of all files, requests and answers.

The runner is a process as an operator starts it, with secrets in its environment; the outputs of
the command line and of a crash are searched too. A secret may be at the Hub as the credential of a
request, and at no other place; only the queue has the addresses to notify.
"""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from dynquant.hub import HubInbox
from dynquant.jobs.request import JobRequest
from tests.command_line import needs_shared
from tests.hardening import long_form
from tests.post_server import Post, taking_posts
from tests.secrets.search import files_in, teller
from tests.service.conftest import ROOT, SOURCE, TOKEN, Field, hub, sqlite_field
from tests.waiting import PATIENCE_SECS

__all__ = ["hub", "sqlite_field"]

pytestmark = [pytest.mark.hub, needs_shared, pytest.mark.harden("secrets")]

SPACE_SECRET = "canary-of-the-space-0123456789"
WEBHOOK_SECRET = "canary-of-the-webhook-0123456789"
NOTIFY = "canary-of-the-address-to-notify"
CANARIES = (TOKEN, SPACE_SECRET, WEBHOOK_SECRET, NOTIFY)
INBOX = "you/inbox"


hits = teller(CANARIES)


@dataclass
class Space:
    """A server that keeps the posts to a Space."""

    url: str
    posts: list[bytes] = field(default_factory=list)


@pytest.fixture
def space() -> Iterator[Space]:
    posts: list[bytes] = []

    def keep(post: Post) -> int:
        posts.append(post.body)
        return 204

    with taking_posts(keep) as port:
        yield Space(f"http://127.0.0.1:{port}", posts)


def said(run: Field, *words: str, **variables: str) -> bytes:
    """The output of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "dynquant", *words],
        env=run.environment("one") | variables,
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=PATIENCE_SECS,
    )
    return done.stdout + done.stderr


def at_the_hub(run: Field) -> Iterator[tuple[str, bytes]]:
    for (_, repo_id), repo in run.hub.repos.items():
        for sha, commit in repo.commits.items():
            yield f"{repo_id} {sha[:7]}", f"{commit.title}{commit.description}".encode()
            for name, blob in commit.files.items():
                yield f"{repo_id}/{name} {sha[:7]}", blob.read()


def test_the_search_finds_a_secret_however_it_is_spelled():
    for secret in CANARIES:
        for shift in range(3):
            assert hits(b"x" + base64.b64encode(b"y" * shift + secret.encode() + b"zz")) == [secret]
        assert hits(secret.encode("utf-16-le")) == hits(quote(secret).encode()) == [secret]
    assert not hits(b"hf_canary, canary-of-the, and nothing else")


@pytest.mark.parametrize(
    ("name", "value"), [("HF_TOKEN", TOKEN), ("HF_ENDPOINT", f"http://user:{TOKEN}@127.0.0.1:9")]
)
def test_no_error_of_the_command_line_says_a_token(sqlite_field, name, value):
    away = {"HF_ENDPOINT": "http://127.0.0.1:9"} | {name: value}
    told = said(sqlite_field, "plan", SOURCE, "--bpw", "4", **away)
    assert b"Error" in told or b"Hub" in told
    assert hits(told) == []


def test_of_an_address_to_notify_only_the_host_is_shown(sqlite_field):
    job = sqlite_field.submit(notify_url=f"https://hooks.example.org/{NOTIFY}")
    told = said(sqlite_field, "jobs", "show", job.id, "--json")
    assert b"hooks.example.org" in told
    assert hits(told) == []


@long_form
@pytest.mark.slow
def test_no_secret_is_in_anything_that_a_runner_writes_sends_or_answers(
    sqlite_field, space, harden
):
    run = sqlite_field
    bodies: list[bytes] = []
    run.hub.after_request = lambda request: bodies.append(request.body)
    runner = run.start(
        DYNQUANT_SPACE_URL=space.url,
        DYNQUANT_SPACE_SECRET=SPACE_SECRET,
        DYNQUANT_WEBHOOK_SECRET=WEBHOOK_SECRET,
        DYNQUANT_INBOX_REPO=INBOX,
        HUGGING_FACE_HUB_TOKEN=TOKEN,
        PYTHONFAULTHANDLER="1",
    )
    # Jobs with every outcome, and a job whose address to notify is itself a secret.
    done = run.submit(notify_url=f"https://127.0.0.1:9/{NOTIFY}")
    run.submit(1.0)
    run.submit(4.5, destination="somebody-else")
    inbox = HubInbox(INBOX, endpoint=run.hub.url, token=TOKEN)
    asked = JobRequest(model="org/none", targets_bpw=(4.5,), destination="you", requester="ann")
    name = inbox.send(asked)
    run.wait(run.computing, "computing")
    children = [Path(f"/proc/{each.pid}/environ").read_bytes() for each in run.computing()]
    run.over(done)
    run.wait(lambda: inbox.result(name), "the answer in the inbox")
    # A crash, with a dump of every thread in the log.
    runner.send_signal(signal.SIGABRT)
    runner.wait(PATIENCE_SECS)
    commands = [
        ("jobs", "list", "--json"),
        ("jobs", "show", done.id, "--json"),
        ("jobs", "logs", done.id),
        ("doctor",),
        ("plan", "org/none", "--bpw", "4.5"),
    ]
    written = files_in(run.folder)
    assert b"Fatal Python error" in written["file one.log"]
    queued = written["file jobs.sqlite"] + written.get("file jobs.sqlite-wal", b"")
    assert b"sample-2m" in queued
    assert any(each.endswith("dynquant.log") for each in written)
    assert children
    assert space.posts
    places = {
        **written,
        **{f"said {' '.join(words)}": said(run, *words) for words in commands},
        **{f"child {number}": content for number, content in enumerate(children)},
        **{f"post {number}": content for number, content in enumerate(space.posts)},
        **{f"body {number}": content for number, content in enumerate(bodies)},
        **{f"Hub {each}": content for each, content in at_the_hub(run)},
    }
    found = {place: told for place, content in places.items() if (told := hits(content))}
    queue = {place for place in found if place.startswith("file jobs.sqlite")}
    assert all(found.pop(place) == [NOTIFY] for place in queue)
    harden("handled", len(places) - len(found))
    harden("lost", len(found))
    assert found == {}
    assert len(places) > 60
