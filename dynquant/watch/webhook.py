"""Webhooks of the Hub, which posts an event when a repo changes; only the repo's name is used.

The Hub sends the secret in plain text in a header, without a signature, a time or an id. So events
are told apart by their content, and an event causes no more than a look at a repo that a rule
covers: https://huggingface.co/docs/hub/webhooks.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.errors import DynquantError, RequestError

__all__ = [
    "MAX_BODY_BYTES",
    "RecentEvents",
    "Webhook",
    "WebhookEvent",
    "WebhookRefusedError",
    "verify_and_parse",
]

MAX_BODY_BYTES = 100_000
"""The Hub's own posts are below 10 KB; the server reads no more than this."""

_SECRET_HEADER = "x-webhook-secret"  # noqa: S105
_REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
_SHA = re.compile(r"[0-9a-f]{40}")
_CONTENT_SCOPES = ("repo", "repo.content")

_OK = 200
_ACCEPTED = 202
_UNAUTHORIZED = 401
_FORBIDDEN = 403
_CONFLICT = 409
_TOO_LARGE = 413
_UNPROCESSABLE = 422
_UNAVAILABLE = 503

_logger = logging.getLogger(__name__)


class WebhookRefusedError(RequestError):
    """A post that is refused, with the HTTP status of the answer."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """A change of a model's repo.

    Attributes:
        repo_id: The repo.
        head_sha: Its newest commit according to the post; empty if the post names no commit.
        action: `create`, `update`, `move` or `delete`.
        scope: `repo`, `repo.content` and the like.
    """

    repo_id: str
    head_sha: str
    action: str
    scope: str

    @property
    def may_bring_weights(self) -> bool:
        """Whether the repo may have new weights."""
        return self.action != "delete" and self.scope in _CONTENT_SCOPES


class RecentEvents:
    """The events of the last hour, so that each has an effect once.

    A later replay causes another look at the repo as it is then, and nothing more.

    Args:
        max_events: Beyond this number the oldest are dropped.
        window_secs: How long an event is kept.
        clock: Counts seconds.
    """

    def __init__(
        self,
        *,
        max_events: int = 10_000,
        window_secs: float = 3600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_events = max_events
        self._window_secs = window_secs
        self._clock = clock
        self._seen: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def is_new(self, key: str) -> bool:
        """Whether `key` was not passed before; keeps it."""
        with self._lock:
            now = self._clock()
            while self._seen and next(iter(self._seen.values())) <= now - self._window_secs:
                self._seen.popitem(last=False)
            if key in self._seen:
                return False
            self._seen[key] = now
            if len(self._seen) > self._max_events:
                self._seen.popitem(last=False)
            return True


class Webhook:
    """Answers posts of the Hub at once; the look at the repo follows later.

    Args:
        secret: The secret of the Hub's webhook.
        covers: Whether a rule covers a repo. Raises DynquantError while the rules are unavailable.
        look: Schedules a look at a repo, and returns at once.
    """

    def __init__(
        self, secret: str, *, covers: Callable[[str], bool], look: Callable[[str], None]
    ) -> None:
        self._secret = secret
        self._covers = covers
        self._look = look
        self._seen = RecentEvents()

    def __call__(self, headers: Mapping[str, str], body: bytes) -> tuple[int, str]:
        """The status and the sentence to answer a post with; see `verify_and_parse`."""
        try:
            event = verify_and_parse(headers, body, self._secret, self._seen, covers=self._covers)
        except WebhookRefusedError as error:
            return error.status, str(error)
        except DynquantError as error:
            _logger.warning("A webhook could not be followed: %s", error)
            return (
                _UNAVAILABLE,
                "The watcher's rules cannot be read now. A sweep will find the change.",
            )
        if not event.may_bring_weights:
            return _OK, "This event brings no new weights, so it is ignored."
        self._look(event.repo_id)
        return _ACCEPTED, f"'{event.repo_id}' will be looked at."


def verify_and_parse(
    headers: Mapping[str, str],
    body: bytes,
    secret: str,
    seen: RecentEvents,
    *,
    covers: Callable[[str], bool],
) -> WebhookEvent:
    """The event of a post to the webhook.

    Args:
        headers: Of the post; names in any case.
        body: At most `MAX_BODY_BYTES` of it, or one byte more.
        secret: The secret of the Hub's webhook.
        seen: The events before.
        covers: Whether a rule covers a repo.

    Raises:
        WebhookRefusedError: The post is forged, too large, not about a model, a replay, or about a
            repo that no rule covers.
    """
    given = next((value for name, value in headers.items() if name.lower() == _SECRET_HEADER), "")
    # As bytes: texts beyond ASCII cannot be compared in constant time.
    if not secret or not hmac.compare_digest(given.encode(), secret.encode()):
        raise WebhookRefusedError(
            "The secret is missing or wrong. Set the same one at the Hub's webhook and here.",
            status=_UNAUTHORIZED,
        )
    if len(body) > MAX_BODY_BYTES:
        raise WebhookRefusedError(
            f"A webhook of the Hub has at most {MAX_BODY_BYTES:,} bytes.", status=_TOO_LARGE
        )
    event = _event(body)
    if not covers(event.repo_id):
        raise WebhookRefusedError(
            f"No rule of the watcher covers '{event.repo_id}'.", status=_FORBIDDEN
        )
    if not seen.is_new(_key(event, body)):
        raise WebhookRefusedError("This event was received before.", status=_CONFLICT)
    return event


def _event(body: bytes) -> WebhookEvent:
    try:
        raw = json.loads(body)
        repo, event = raw["repo"], raw["event"]
        repo_id, head_sha = repo["name"], repo.get("headSha") or ""
        is_model = repo["type"] == "model" and _REPO_ID.fullmatch(repo_id) is not None
        action, scope = _word(event["action"]), _word(event["scope"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _malformed() from error
    if not is_model or not (
        isinstance(head_sha, str) and (_SHA.fullmatch(head_sha) or not head_sha)
    ):
        raise _malformed()
    return WebhookEvent(repo_id=repo_id, head_sha=head_sha, action=action, scope=scope)


def _word(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z.]{1,40}", value):
        raise ValueError
    return value


def _malformed() -> WebhookRefusedError:
    return WebhookRefusedError(
        "This event is not about a model's repo. Set the Hub's webhook to watch models only.",
        status=_UNPROCESSABLE,
    )


def _key(event: WebhookEvent, body: bytes) -> str:
    """The identity of an event: its commit, or else the hash of its content."""
    what = event.head_sha or hashlib.sha256(body).hexdigest()
    return f"{event.repo_id} {event.action} {event.scope} {what}"
