"""Where the pages read of the watcher, and where its operator steers it."""

from __future__ import annotations

from typing import Protocol

from dynquant.watch.status import WatchStatus

__all__ = ["WatchDesk"]


class WatchDesk(Protocol):
    """What the pages need of the watcher."""

    def status(self) -> WatchStatus:
        """How it is set up, and what it did lately.

        Raises:
            RetryLaterError: Nobody has told, or the database does not answer.
        """
        ...

    def sweep(self) -> str:
        """Begin a sweep, without waiting for it; what to tell who asked.

        Raises:
            RequestError: One runs, the watcher is paused, or its rules cannot be read.
            RetryLaterError: The database does not answer.
        """
        ...

    def pause(self) -> str:
        """Sweep no more until `resume`; a sweep that runs stops. What to tell who asked."""
        ...

    def resume(self) -> str:
        """Sweep by schedule again; what to tell who asked."""
        ...
