"""The queue in four numbers, for the estimate of when a new job would be done."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from statistics import median

from dynquant.jobs.job import Job, JobState
from dynquant.jobs.ports import RunnerStatus

__all__ = ["QueueSummary", "summarize_queue"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSummary:
    """The jobs before a new one, and the runners that do them.

    Attributes:
        num_runners: Runners that are alive.
        job_secs: Median duration of the published jobs; None before the first.
    """

    num_waiting: int
    num_running: int
    num_runners: int
    job_secs: float | None


def summarize_queue(jobs: Collection[Job], runners: Collection[RunnerStatus]) -> QueueSummary:
    """Count what waits and runs, and take the median duration."""
    durations = [
        (job.ended_at - job.started_at).total_seconds()
        for job in jobs
        if job.state is JobState.PUBLISHED and job.started_at and job.ended_at
    ]
    return QueueSummary(
        num_waiting=sum(job.state is JobState.WAITING for job in jobs),
        num_running=sum(job.state is JobState.RUNNING for job in jobs),
        num_runners=sum(runner.is_alive for runner in runners),
        job_secs=median(durations) if durations else None,
    )
