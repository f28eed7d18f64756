"""The order in which runners take waiting jobs, and the expected waiting time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["WaitingJob", "expected_wait_secs", "in_turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingJob:
    """A waiting job with all that its place in the line depends on.

    Attributes:
        priority: Jobs with a lower number go first.
        number: Of its submission; counts up.
        has_begun: Whether a runner had it before; such jobs go first within their priority.
        needed_memory_bytes: Memory that a runner must have for it, if known.
    """

    id: str
    requester: str
    priority: int
    number: int
    has_begun: bool = False
    needed_memory_bytes: int | None = None


def in_turn(
    waiting: Sequence[WaitingJob], *, running: Mapping[str, int], last_served: Mapping[str, int]
) -> tuple[WaitingJob, ...]:
    """`waiting` in the order in which runners take them.

    Requesters take turns, however many jobs they queued: in each round every requester has one
    job, and its running jobs count as its first rounds. Within a round, the requester that was
    served least recently goes first.

    Args:
        waiting: In any order.
        running: Requester → number of its running jobs.
        last_served: Requester → a number that counts up with every job taken; absent if never
            served.

    Source: max-min fairness by round robin, Nagle, RFC 970 (1985).
    """
    queued: Counter[str] = Counter()
    keyed = []
    for job in sorted(waiting, key=lambda job: (job.priority, not job.has_begun, job.number)):
        turn = running.get(job.requester, 0) + queued[job.requester]
        queued[job.requester] += 1
        served = last_served.get(job.requester, -1)
        keyed.append(((job.priority, not job.has_begun, turn, served, job.number), job))
    return tuple(job for _, job in sorted(keyed, key=lambda pair: pair[0]))


def expected_wait_secs(
    *, num_ahead: int, num_running: int, num_slots: int, job_secs: float | None
) -> float | None:
    """Time until a waiting job's turn; None without a finished job or a live runner.

    Args:
        num_ahead: Waiting jobs before it.
        num_running: Jobs that run now; on average they are half done.
        num_slots: Jobs that the live runners run at once.
        job_secs: Duration of a job, from finished jobs.
    """
    if job_secs is None or num_slots < 1:
        return None
    return max(0.0, num_ahead + num_running / 2 - max(0, num_slots - num_running)) * (
        job_secs / num_slots
    )
