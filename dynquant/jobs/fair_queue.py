"""Whose turn it is: the order in which waiting jobs are taken, and how long that may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["WaitingJob", "expected_wait_secs", "in_turn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingJob:
    """What decides about a waiting job's place.

    Attributes:
        priority: The lower goes first, whoever else waits.
        number: Of its submission; counts up.
        has_begun: A runner had it before; such jobs go first within their priority.
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

    Requesters take turns, whatever they have queued: in each round every requester has one
    job, and the jobs that it has running count as its first rounds. Within a round the
    requester goes first who has been served least recently.

    Args:
        waiting: In any order.
        running: Requester → number of its running jobs.
        last_served: Requester → number that counts up with every job taken; none if never.

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
    """Time until a waiting job's turn, or None if nobody can say.

    Args:
        num_ahead: Waiting jobs before it.
        num_running: Jobs that run now; on average they are half done.
        num_slots: Jobs that the live runners take at once.
        job_secs: What a job takes, from those that were finished.
    """
    if job_secs is None or num_slots < 1:
        return None
    return max(0.0, num_ahead + num_running / 2 - max(0, num_slots - num_running)) * (
        job_secs / num_slots
    )
