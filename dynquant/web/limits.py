"""Rate limits per visitor, and for all visitors together.

The Hub counts the requests of all visitors against one address, that of this machine.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dynquant.errors import RetryLaterError

__all__ = ["LIMITS", "Limit", "Limits"]

_MAX_VISITORS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """`burst` actions at once, then one every `secs`; `share` times that for a kind."""

    burst: int
    secs: float
    share: int = 20


LIMITS: Mapping[str, Limit] = {
    "search": Limit(burst=60, secs=0.5),
    "look at models": Limit(burst=60, secs=1.0),
    "ask for models": Limit(burst=20, secs=6.0),
    "sign in": Limit(burst=60, secs=1.0),
}
"""Action → limit. People stay far below: a keystroke is a search, a choice is a look at a model,
and a signed-in session is checked with the Hub twice a minute."""


class Limits:
    """Counts what visitors do; safe to use from several threads.

    Args:
        limits: See `LIMITS`.
        clock: Seconds that only go forward.
        visitor: Gives the id of the visitor, as `visitor_ids.visitor_id` does: its kind first.
    """

    def __init__(
        self,
        limits: Mapping[str, Limit] = LIMITS,
        *,
        clock: Callable[[], float] = time.monotonic,
        visitor: Callable[[], str],
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._visitor = visitor
        self._lock = threading.Lock()
        # (Action, visitor) → the time from which the visitor has the whole burst again.
        self._spent_until: OrderedDict[tuple[str, str], float] = OrderedDict()

    def count(self, what: str, *, who: str = "") -> None:
        """Count that a visitor does `what`.

        All accounts share one limit and all addresses another, so that visitors with many addresses
        cannot block accounts.

        Args:
            what: A key of the limits.
            who: Id of the visitor; empty asks `visitor`.

        Raises:
            RetryLaterError: The visitor is over the limit.
        """
        limit = self._limits[what]
        who = who or self._visitor() or "?"
        kind = who.partition(" ")[0]
        with self._lock:
            self._spend(what, who, limit.burst, limit.secs, whom="You")
            self._spend(
                what,
                f"all {kind}",
                limit.burst * limit.share,
                limit.secs / limit.share,
                whom="All visitors together",
            )

    def _spend(self, what: str, who: str, burst: int, secs: float, *, whom: str) -> None:
        now = self._clock()
        until = max(self._spent_until.get((what, who), now), now) + secs
        if (wait_secs := until - now - burst * secs) > 0:
            raise RetryLaterError(
                f"{whom} {what} more often than this page allows. Wait "
                f"{max(round(wait_secs), 1)} s, then try again."
            )
        self._spent_until[what, who] = until
        self._spent_until.move_to_end((what, who))
        while len(self._spent_until) > _MAX_VISITORS:
            self._spent_until.popitem(last=False)
