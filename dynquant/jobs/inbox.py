"""The inbox that carries requests from a Space to runners: its entries and methods."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from dynquant.jobs.request import JobRequest

__all__ = ["Inbox", "InboxEntry", "entry_name", "is_entry_name"]

_NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}/[0-9]{12}-[0-9a-f]{16}")
_TIME = "%Y-%m-%d/%H%M%S%f"


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxEntry:
    """A file among the requests in an inbox.

    Attributes:
        name: Made by `entry_name`.
        request: None if the file cannot be read as a request.
        sentence: Why it cannot be read.
    """

    name: str
    request: JobRequest | None = None
    sentence: str = ""

    @property
    def sent_at(self) -> datetime:
        """When the request was sent, by the sender's clock."""
        return _sent_at(self.name)


class Inbox(Protocol):
    """Requests and their results; see `hub.inbox.HubInbox`."""

    def send(self, request: JobRequest) -> str:
        """Append a request; returns the entry's name."""
        ...

    def pending(self, *, skip: Collection[str] = ()) -> Sequence[InboxEntry]:
        """Entries without a result, oldest first, except those named in `skip`."""
        ...

    def gone(self, names: Collection[str]) -> Collection[str]:
        """Those of `names` that were not among the requests when `pending` looked last."""
        ...

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Replace a request with its result."""
        ...

    def result(self, name: str) -> dict[str, Any] | None:
        """The result of a request; None while it has none."""
        ...


def entry_name(*, sent_at: datetime, nonce: str) -> str:
    """Name of an entry, `YYYY-MM-DD/HHMMSSffffff-<nonce>`, with a nonce of 16 hex digits."""
    return f"{sent_at:{_TIME}}-{nonce}"


def is_entry_name(name: str) -> bool:
    """Whether `entry_name` can have made this name."""
    try:
        _sent_at(name)
    except ValueError:
        return False
    return _NAME.fullmatch(name) is not None


def _sent_at(name: str) -> datetime:
    return datetime.strptime(name.rpartition("-")[0], _TIME).replace(tzinfo=UTC)
