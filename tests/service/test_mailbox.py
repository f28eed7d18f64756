"""A runner behind NAT: requests arrive by the inbox on the Hub, the board leaves by HTTPS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from dynquant.hub import HubInbox
from dynquant.jobs.request import JobRequest
from local_hub.texts import add_default_texts
from tests.hostile.damage import make_sound
from tests.post_server import Post, taking_posts
from tests.service.conftest import SECRET, TOKEN, Field

pytestmark = [pytest.mark.hub, pytest.mark.slow]

INBOX = "you/inbox"
SOURCE = "org/small"
"""Small, since a request from a Space can ask neither for less effort nor for fewer tokens."""


@dataclass
class Space:
    """A server that keeps the posts to a Space."""

    url: str = ""
    boards: list[dict[str, Any]] = field(default_factory=list)
    notices: list[dict[str, Any]] = field(default_factory=list)

    def take(self, post: Post) -> int:
        content = json.loads(post.body)
        if post.path != "/runner/board":
            self.notices.append(content)
        elif post.headers["Authorization"] == f"Bearer {SECRET}":
            self.boards.append(content)
        else:
            return 403
        return 204


@pytest.fixture
def space() -> Iterator[Space]:
    space = Space()
    with taking_posts(space.take) as port:
        space.url = f"http://127.0.0.1:{port}"
        yield space


def states(space: Space, *, attempt: int = 1) -> list[str]:
    jobs = [job for board in space.boards for job in board["jobs"]]
    return [job["state"] for job in jobs if job["attempt"] == attempt]


@pytest.fixture
def mail_field(sqlite_field, tmp_path) -> Field:
    """With a small model, and the texts by default: a request from a Space cannot name others."""
    make_sound(tmp_path / "small")
    sqlite_field.hub.add(SOURCE, tmp_path / "small")
    add_default_texts(sqlite_field.hub, num_documents=4)
    return sqlite_field


def test_a_request_in_the_inbox_is_done_shown_live_and_answered_there(mail_field, space):
    field = mail_field
    inbox = HubInbox(INBOX, endpoint=field.hub.url, token=TOKEN)
    fields: dict[str, Any] = {"destination": "you", "requester": "ann"}
    name = inbox.send(JobRequest(model=SOURCE, targets_bpw=(4.5,), **fields))
    refused = inbox.send(JobRequest(model="org/none", targets_bpw=(4.5,), **fields))
    field.start(
        DYNQUANT_INBOX_REPO=INBOX, DYNQUANT_SPACE_URL=space.url, DYNQUANT_SPACE_SECRET=SECRET
    )
    field.wait(lambda: inbox.result(refused), "the refusal")
    found = inbox.result(refused)
    assert found is not None
    assert (found["state"], found["reason_code"]) == ("refused", "model_not_found")
    result = field.wait(lambda: inbox.result(name), "the result")
    assert result["state"] == "published"
    assert [each["repo_id"] for each in result["results"]] == ["you/org__small-MLX-4.5bpw"]
    assert not inbox.pending()
    field.wait(lambda: "published" in states(space), "the live board")
    assert "running" in states(space)
    (job,) = space.boards[-1]["jobs"]
    assert job["request"]["requester"] == "ann"
    assert "notify_url" not in json.dumps(space.boards)


@pytest.mark.harden("inbox")
def test_a_private_model_of_the_operator_cannot_be_asked_for_by_mail(sqlite_field):
    field = sqlite_field
    field.hub.add("you/secret", {"config.json": b"{}", "model.safetensors": b"x"}, private=True)
    field.hub.add("you/shown", {"config.json": b"{}", "model.safetensors": b"x"}, private=True)
    inbox = HubInbox(INBOX, endpoint=field.hub.url, token=TOKEN)
    secret, shown = (
        inbox.send(JobRequest(model=model, targets_bpw=(4.5,), destination="you", requester="eve"))
        for model in ("you/secret", "you/shown")
    )
    field.start(DYNQUANT_INBOX_REPO=INBOX, DYNQUANT_INBOX_PRIVATE_SOURCES="you/shown")
    found = field.wait(lambda: inbox.result(secret), "the refusal")
    assert (found["state"], found["reason_code"]) == ("refused", "model_not_found")
    assert all(job.request.model != "you/secret" for job in field.board.list())
    # A model that the operator allowed is queued, and fails because of its content.
    found = field.wait(lambda: inbox.result(shown), "the other answer")
    assert found["job_id"] == field.board.list()[0].id


@pytest.mark.harden("web")
def test_what_was_deleted_is_made_again_by_mail_and_private_models_are_on_no_board(
    mail_field, space, tmp_path
):
    field = mail_field
    field.hub.add("you/canary", tmp_path / "small", private=True)
    inbox = HubInbox(INBOX, endpoint=field.hub.url, token=TOKEN)
    fields: dict[str, Any] = {"destination": "you", "requester": "ann"}
    asked = JobRequest(model=SOURCE, targets_bpw=(4.5,), **fields)
    hidden = inbox.send(JobRequest(model="you/canary", targets_bpw=(4.5,), **fields))
    first = inbox.send(asked)
    field.start(
        DYNQUANT_INBOX_REPO=INBOX,
        DYNQUANT_INBOX_PRIVATE_SOURCES="you/canary",
        DYNQUANT_SPACE_URL=space.url,
        DYNQUANT_SPACE_SECRET=SECRET,
    )
    for name in (hidden, first):
        result = field.wait(lambda: inbox.result(name), "the result")  # noqa: B023
        assert result["state"] == "published"
    repo = "you/org__small-MLX-4.5bpw"
    del field.hub.repos["model", repo]
    second = inbox.send(asked)
    result = field.wait(lambda: inbox.result(second), "the second result")
    assert (result["state"], result["results"][0]["repo_id"]) == ("published", repo)
    assert ("model", repo) in field.hub.repos
    job = field.board.get(result["job_id"])
    assert (job.attempt, [each.state for each in job.history]) == (2, ["published"])
    field.wait(lambda: states(space, attempt=2), "the live board")
    assert "canary" not in json.dumps(space.boards)
    assert field.hub.repos["model", "you/canary-MLX-4.5bpw"].private
