"""The schedule of sweeps, by cron: of all runners on a database, one sweeps at each time."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable
from datetime import datetime
from functools import partial

from croniter import croniter  # type: ignore[import-untyped]

from dynquant.errors import InvalidOptionError
from dynquant.watch.records import SweepReport
from dynquant.watch.state import DatabaseWatchState

__all__ = ["ScheduledSweeps", "parse_cron"]

_LEASE_SECS = 300.0
"""After which another runner continues the sweep of one that died. It is renewed before each
close look, which takes at most three tries of half a minute and their pauses."""
_NUM_FIELDS = 5

_logger = logging.getLogger(__name__)


class ScheduledSweeps:
    """Sweeps at the times of a schedule.

    Args:
        state: Has the lease of the process that sweeps.
        cron: The schedule, as `parse_cron` gives it, in UTC.
        sweep: Sweeps as of a time, while its second argument returns True.
    """

    def __init__(
        self,
        state: DatabaseWatchState,
        *,
        cron: str,
        sweep: Callable[[datetime, Callable[[], bool]], SweepReport],
    ) -> None:
        self._state = state
        self._cron = cron
        self._sweep = sweep
        self._stopping = threading.Event()
        # Unique, so that no other process of the same runner takes this lease for its own.
        self._holder = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"

    def do_round(self) -> SweepReport | None:
        """Sweep if a sweep is due and no other process sweeps; to be called every few seconds.

        Raises:
            InvalidOptionError: The rules cannot be read.
            RetryLaterError: The database does not answer.
        """
        return self._sweep_if(partial(is_due, self._cron))

    def do_now(self) -> SweepReport | None:
        """Sweep now, unless another process sweeps or the watcher is paused.

        Raises:
            InvalidOptionError: The rules cannot be read.
            RetryLaterError: The database does not answer.
        """
        return self._sweep_if(lambda _last, _now: True)

    def stop(self) -> None:
        """End a running sweep soon, and begin no other: this process ends."""
        self._stopping.set()

    def _sweep_if(self, is_due: Callable[[datetime | None, datetime], bool]) -> SweepReport | None:
        if self._stopping.is_set():
            return None
        began_at = self._state.begin(self._holder, lease_secs=_LEASE_SECS, is_due=is_due)
        if began_at is None:
            return None
        try:
            return self._sweep(began_at, self._may_go_on)
        finally:
            # Also after a failure: the next attempt is at the next time of the schedule.
            self._state.end(self._holder, began_at=began_at)

    def _may_go_on(self) -> bool:
        return not self._stopping.is_set() and self._state.renew(
            self._holder, lease_secs=_LEASE_SECS
        )


def is_due(cron: str, last: datetime | None, now: datetime) -> bool:
    """Whether a time of the schedule has come since the last sweep began."""
    if last is None or last > now:  # the first, or the database's clock was put back
        return True
    following: datetime = croniter(cron, last).get_next(datetime)
    return following <= now


def parse_cron(text: str) -> str:
    """A schedule of five fields: minute, hour, day, month, weekday; in UTC.

    Raises:
        InvalidOptionError: The text is not such a schedule.
    """
    if len(text.split()) != _NUM_FIELDS or not croniter.is_valid(text):
        raise InvalidOptionError(
            "The schedule of the watcher must have the five fields of cron, such as "
            "'*/15 * * * *' for every 15 minutes."
        )
    return text
