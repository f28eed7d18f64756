"""Interfaces that the jobs need, and records that the board returns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dynquant.jobs.job import PublishedRepo, StepProgress
from dynquant.jobs.request import JobRequest

__all__ = [
    "JobEvent",
    "PublishedRepos",
    "QuarantinedEntry",
    "RunnerStatus",
    "StepRunner",
]


class StepRunner(Protocol):
    """Does the steps of jobs.

    The engine keeps the text that a step returns. Large results are local files; a step that does
    not find the files of an earlier step makes them again.
    """

    def run(
        self,
        step: str,
        request: JobRequest,
        results: Mapping[str, str],
        *,
        job_id: str,
        report: Callable[[StepProgress], None],
        is_cancelled: Callable[[], bool],
    ) -> str:
        """Do a step; returns a small JSON text, for `publish` that of `job_text.results_to_text`.

        It may run again after it was done, also on another machine.

        Args:
            step: One of `convert.STEPS`.
            request: With the commit as its revision.
            results: Earlier step → the text that it returned.
            job_id: Names the job's files on this machine.
            report: Takes progress, as often as the step likes.
            is_cancelled: A cheap check. Once it is true, the step has to stop within a second; its
                result or error is then ignored.

        Raises:
            RequestError: The job is refused.
            NotEnoughMemoryError: The job waits for a runner with more memory.
            RetryLaterError: The step runs again, for a while.
            NeverPublishError: The job fails.
        """
        ...

    def release(self, job_id: str) -> None:
        """Remove the job's files from this machine, if there are any."""
        ...

    def local_jobs(self) -> Collection[str]:
        """Ids of the jobs that have files on this machine."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """A line of a job's log.

    Attributes:
        number: Counts up within a database.
        at: By the database's clock.
    """

    number: int
    at: datetime
    kind: str
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerStatus:
    """A runner, as the database shows it.

    Attributes:
        silent_secs: Time since its last heartbeat.
        is_alive: Whether it has not stopped and its last heartbeat is recent.
        num_slots: Jobs that it runs at once.
        chip: Name of its processor; empty if it is unknown.
    """

    id: str
    version: str
    memory_bytes: int
    num_slots: int
    num_running: int
    silent_secs: float
    is_alive: bool
    chip: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedEntry:
    """An entry of the queue that could not be read and was taken out of the queue."""

    job_id: str
    at: datetime
    sentence: str


class PublishedRepos(Protocol):
    """Looks up published repos; see `hub.published.HubRepos`."""

    def are_there(self, repos: Sequence[PublishedRepo]) -> bool:
        """Whether each of these repos still holds a model that dynquant published.

        Raises:
            RequestError: The token in use is refused.
            RetryLaterError: The Hub does not answer.
        """
        ...
