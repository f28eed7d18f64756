from __future__ import annotations

import json
from typing import Any

import pytest

from dynquant.watch.rules import may_cover
from dynquant.watch.webhook import (
    MAX_BODY_BYTES,
    RecentEvents,
    WebhookEvent,
    WebhookRefusedError,
    verify_and_parse,
)
from tests.watch.factories import make_config, make_rule

pytestmark = pytest.mark.harden("web")

SECRET = "correct horse battery staple"
SHA = "0123456789abcdef0123456789abcdef01234567"
CONFIG = make_config(make_rule(authors=("Org",)), opt_out=("org/shy",))


def body(**changes: Any) -> bytes:
    """As the Hub sends it: https://huggingface.co/docs/hub/webhooks."""
    repo = {
        "type": "model",
        "name": "org/Model",
        "id": "621ffdc036468d709f17434d",
        "private": False,
        "url": {"web": "https://huggingface.co/org/Model"},
        "owner": {"id": "628b753283ef59b5be89e937"},
        "headSha": SHA,
        "tags": [],
    } | changes.pop("repo", {})
    payload = {
        "event": {"action": "update", "scope": "repo.content"},
        "repo": repo,
        "webhook": {"id": "6390e855e30d9209411de93b", "version": 3},
        "updatedRefs": [{"ref": "refs/heads/main", "oldSha": "0" * 40, "newSha": SHA}],
    }
    return json.dumps(payload | changes).encode()


def receive(
    content: bytes | None = None,
    *,
    secret: str | None = SECRET,
    seen: RecentEvents | None = None,
    header: str = "X-Webhook-Secret",
) -> WebhookEvent:
    headers = {"Content-Type": "application/json"} | ({} if secret is None else {header: secret})
    return verify_and_parse(
        headers,
        body() if content is None else content,
        SECRET,
        seen or RecentEvents(),
        covers=lambda repo_id: may_cover(repo_id, CONFIG),
    )


def status_of(*arguments: Any, **options: Any) -> int:
    with pytest.raises(WebhookRefusedError) as caught:
        receive(*arguments, **options)
    assert str(caught.value).endswith(".")
    assert SECRET not in str(caught.value)
    return caught.value.status


@pytest.mark.parametrize("header", ["X-Webhook-Secret", "x-webhook-secret"])
def test_an_event_names_the_repo_and_its_newest_commit(header):
    event = receive(header=header)
    assert event == WebhookEvent(
        repo_id="org/Model", head_sha=SHA, action="update", scope="repo.content"
    )
    assert event.may_bring_weights


def test_new_repos_may_bring_weights_and_talk_does_not():
    created = {"action": "create", "scope": "repo"}
    assert receive(body(event=created)).may_bring_weights
    for action, scope in (
        ("delete", "repo"),
        ("create", "discussion"),
        ("create", "discussion.comment"),
        ("update", "repo.config"),
    ):
        event = {"action": action, "scope": scope}
        assert not receive(body(event=event)).may_bring_weights


@pytest.mark.parametrize("secret", [None, "", "wrong", SECRET + "x", SECRET[:-1], "geheim ü"])
def test_who_does_not_know_the_secret_is_refused_whatever_he_sends(secret):
    for content in (body(), b"", b"{", b"x" * (MAX_BODY_BYTES + 1)):
        assert status_of(content, secret=secret) == 401


def test_without_a_secret_of_our_own_nobody_is_believed():
    with pytest.raises(WebhookRefusedError):
        verify_and_parse(
            {"x-webhook-secret": ""}, body(), "", RecentEvents(), covers=lambda _: True
        )


def test_what_is_too_large_is_refused_before_it_is_read():
    assert status_of(b"[" * (MAX_BODY_BYTES + 1)) == 413


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 50_000,
        body(repo={"type": "dataset"}),
        body(repo={"name": "../../etc"}),
        body(repo={"name": "no-namespace"}),
        body(repo={"name": None}),
        body(repo={"headSha": "not-a-sha"}),
        body(repo={"headSha": 5}),
        body(event={"action": "update"}),
        body(event={"action": "<script>", "scope": "repo"}),
        body(event=None),
        body(repo={"name": "org/" + "m" * 97}),
    ],
)
def test_what_is_no_event_about_a_model_is_refused(content):
    assert status_of(content) == 422


@pytest.mark.parametrize("name", ["else/Model", "org/shy"])
def test_a_repo_that_no_rule_covers_is_refused(name):
    assert status_of(body(repo={"name": name})) == 403


def test_a_replayed_event_is_refused_and_another_commit_is_not():
    seen = RecentEvents()
    receive(seen=seen)
    assert status_of(seen=seen) == 409
    assert status_of(body(repo={"private": True}), seen=seen) == 409  # the same commit
    receive(body(repo={"headSha": "f" * 40}), seen=seen)
    without = body(repo={"headSha": None})
    receive(without, seen=seen)
    assert status_of(without, seen=seen) == 409


def test_a_refused_event_does_not_stand_in_the_way_of_the_right_one():
    seen = RecentEvents()
    assert status_of(secret="wrong", seen=seen) == 401
    assert receive(seen=seen).repo_id == "org/Model"


def test_events_are_forgotten_after_an_hour_and_beyond_a_number():
    now = [0.0]
    seen = RecentEvents(max_events=2, window_secs=3600, clock=lambda: now[0])
    assert seen.is_new("a")
    assert not seen.is_new("a")
    now[0] = 3599
    assert not seen.is_new("a")
    now[0] = 3600
    assert seen.is_new("a")
    assert seen.is_new("b")
    assert seen.is_new("c")
    assert seen.is_new("a")
