"""The engine's intervals and timeouts."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Timing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The engine's intervals; the tests shorten them.

    Attributes:
        tick_secs: Between two looks for cancelled jobs, progress and jobs to take. A cancel takes
            this time plus the time that the step needs to stop, together below 2 s.
        heartbeat_secs: Between two heartbeats.
        dead_after_secs: Without a heartbeat until a runner's jobs are queued again. A machine
            short of memory can stall for many seconds.
        takeover_secs: Without a heartbeat until a new process may take a runner's name.
        retry_for_secs: Total time that a step is retried after errors that may pass, such as those
            of the network.
        first_delay_secs: Before the first retry; doubles every time.
        longest_delay_secs: Bound of that delay.
        stop_secs: How long a stopping runner waits for its steps to stop.
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
        """Looks without a heartbeat after which a runner counts as dead."""
        return math.ceil(self.dead_after_secs / self.heartbeat_secs)

    @property
    def num_looks_to_take_over(self) -> int:
        """Looks without a heartbeat after which a runner's name is free."""
        return math.ceil(self.takeover_secs / self.heartbeat_secs)
