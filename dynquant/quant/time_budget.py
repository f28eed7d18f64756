"""The time budget of a conversion: once it is spent, no further round of improving begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

__all__ = ["TimeBudget"]


@dataclass(frozen=True)
class TimeBudget:
    """Minutes for polishing, and as many for distilling; None for as many rounds as planned.

    Attributes:
        minutes: Each of the two may take so long.
        clock: Seconds of a clock that never goes back.
    """

    minutes: float | None
    clock: Callable[[], float]

    def shares(self, num_parts: int) -> Iterator[Callable[[], bool]]:
        """For each part of some work, in turn, a function that tells whether it may go on.

        The budget begins with the first part. Each part gets an equal share of the time that is
        left when it begins, so that time that one part does not need goes to the later ones.
        """
        end = None if self.minutes is None else self.clock() + 60 * self.minutes
        for num_left in range(num_parts, 0, -1):
            if end is None:
                yield lambda: True
            else:
                now = self.clock()
                yield self._until(now + (end - now) / num_left)

    def _until(self, deadline_secs: float) -> Callable[[], bool]:
        return lambda: self.clock() < deadline_secs
