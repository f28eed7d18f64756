"""How often the engine looks, and how long it is patient."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Timing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The engine's intervals; the tests shorten them.

    Attributes:
        tick_secs: Between two looks for cancels, progress and jobs to take. A cancel arrives
            within this and what the step takes to stop, together below 2 s.
        heartbeat_secs: Between two signs of life.
        dead_after_secs: Without a sign of life until a runner's jobs go to another. A machine
            short of memory can stall for many seconds.
        takeover_secs: Without a sign of life until a new process may take a runner's name.
        retry_for_secs: That a step waits in all for what may work later, such as the network.
        first_delay_secs: Before such a step runs again; doubles every time.
        longest_delay_secs: What it doubles to.
        stop_secs: That a stopping runner waits for its steps to stop.
    """

    tick_secs: float = 0.5
    heartbeat_secs: float = 2.0
    dead_after_secs: float = 30.0
    takeover_secs: float = 6.0
    retry_for_secs: float = 1_800.0
    first_delay_secs: float = 2.0
    longest_delay_secs: float = 60.0
    stop_secs: float = 10.0

    @property
    def num_looks(self) -> int:
        """At a runner without a sign of life until it is dead."""
        return math.ceil(self.dead_after_secs / self.heartbeat_secs)

    @property
    def num_looks_to_take_over(self) -> int:
        """At a runner without a sign of life until its name is free."""
        return math.ceil(self.takeover_secs / self.heartbeat_secs)
