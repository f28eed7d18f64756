"""What the Hub posts when a repo changes: checked, read, and never believed beyond its name.

The Hub sends the secret as it is, in a header, and neither a signature nor a time nor an id.
So an event is known by its content, and all that it can bring about is a look at a repo that
some rule covers: https://huggingface.co/docs/hub/webhooks.
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
"""The Hub's own are below 10 KB; whoever mounts this stops reading here."""

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
    """A post that is not acted upon; `status` is what to answer it with."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """Something has changed in a model's repo.

    Attributes:
        repo_id: The repo.
        head_sha: Its newest commit as the post says; empty if it does not.
        action: `create`, `update`, `move` or `delete`.
        scope: `repo`, `repo.content` and the like.
    """

    repo_id: str
    head_sha: str
    action: str
    scope: str

    @property
    def may_bring_weights(self) -> bool:
        """Whether a look at the repo is worth it."""
        return self.action != "delete" and self.scope in _CONTENT_SCOPES


class RecentEvents:
    """The events of the last hour, so that each is acted upon once.

    A replay that is older brings about a look at the repo as it is now, and nothing more.

    Args:
        max_events: The oldest are forgotten beyond.
        window_secs: For which an event is remembered.
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
        """Whether this is the first time that `key` is asked about; it is remembered."""
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
    """Answers posts of the Hub at once; what they bring about comes afterwards.

    Args:
        secret: What the Hub was told to send along.
        covers: Whether some rule speaks of a repo. Raises DynquantError while nobody can tell.
        look: Has a repo looked at soon, and does not wait for it.
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
            return _UNAVAILABLE, "The watcher's rules are not known now. A sweep will find it."
        if not event.may_bring_weights:
            return _OK, "This brings no weights, so there is nothing to look at."
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
    """The event that a post to the webhook tells of.

    Args:
        headers: Of the post; names in any case.
        body: At most `MAX_BODY_BYTES` of it, or one byte more.
        secret: What the Hub was told to send along.
        seen: The events before.
        covers: Whether some rule speaks of a repo.

    Raises:
        WebhookRefusedError: Forged, too large, no event about a model, replayed, or about a repo
            that no rule covers.
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
        "This is no event about a model's repo. Let the webhook of the Hub watch models only.",
        status=_UNPROCESSABLE,
    )


def _key(event: WebhookEvent, body: bytes) -> str:
    """Names an event: its commit, or its whole content where there is none."""
    what = event.head_sha or hashlib.sha256(body).hexdigest()
    return f"{event.repo_id} {event.action} {event.scope} {what}"
