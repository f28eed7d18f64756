"""Jobs: what the engine runs, and what the web, the watcher and the command line ask it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dynquant.jobs.job import Job, JobState, PublishedRepo, StepProgress
from dynquant.jobs.request import JobRequest

__all__ = [
    "JobBoard",
    "JobEvent",
    "PublishedRepos",
    "QuarantinedEntry",
    "RunnerStatus",
    "StepRunner",
]


class StepRunner(Protocol):
    """Does the steps of jobs.

    What a step returns is kept; everything large is local, found again by what it is made of,
    and made again by the step that misses it.
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
        """Do a step; a small JSON text, for `publish` that of `job_text.results_to_text`.

        It may run again after it was done, also on another machine.

        Args:
            step: One of `convert.STEPS`.
            request: With the commit as its revision.
            results: Step → what it returned, of the steps before.
            job_id: Names what the job takes on this machine.
            report: Takes every progress; it only remembers the last.
            is_cancelled: Costs nothing to ask. Once it says yes, the step has to stop within a
                second; what it then returns or raises makes no difference.

        Raises:
            RequestError: The job is refused.
            NotEnoughMemoryError: The job waits for a runner with more memory.
            RetryLaterError: The step runs again, for a while.
            NeverPublishError: The job fails.
        """
        ...

    def release(self, job_id: str) -> None:
        """Free what the job takes on this machine; nothing if it takes nothing."""
        ...

    def local_jobs(self) -> Collection[str]:
        """Ids of the jobs that take something on this machine."""
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
    """A runner, as the others see it.

    Attributes:
        silent_secs: Since it was last heard of.
        is_alive: Whether it has not stopped and was heard of lately.
        num_slots: Jobs that it takes at once.
        chip: Name of its processor; empty if it did not say.
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
    """An entry of the queue that could not be read; the queue went on without it."""

    job_id: str
    at: datetime
    sentence: str


class PublishedRepos(Protocol):
    """Where jobs publish; see `hub.published.HubRepos`."""

    def are_there(self, repos: Sequence[PublishedRepo]) -> bool:
        """Whether each of these repos still holds what dynquant published in it.

        Raises:
            RequestError: The token in use is refused.
            RetryLaterError: The Hub does not answer.
        """
        ...


class JobBoard(Protocol):
    """The jobs of all runners; needs none of them to be running."""

    def submit(
        self,
        request: JobRequest,
        *,
        revision_sha: str,
        source_is_private: bool,
        recipe_version: int,
        needed_memory_bytes: int | None = None,
    ) -> Job:
        """Queue what is asked for; the job that there is already if it was asked for before.

        A published job whose repos were deleted since gets a new attempt, unless the watcher asks.

        Args:
            request: What is asked for.
            revision_sha: Commit of the model, as the Hub says.
            source_is_private: Whether the model is private, as the Hub says.
            recipe_version: Of the recipe that the job is done by.
            needed_memory_bytes: Memory that a runner must have for it, where that is known.

        Raises:
            RequestError: It makes no sense.
            RetryLaterError: The requester is over the limit, or the database does not answer.
        """
        ...

    def get(self, job_id: str) -> Job:
        """The job.

        Raises:
            RequestError: There is none.
        """
        ...

    def list(
        self,
        *,
        states: Collection[JobState] = (),
        requester: str | None = None,
        limit: int = 100,
    ) -> tuple[Job, ...]:
        """Jobs, the latest submission first; of all states if none is named."""
        ...

    def mark(self, states: Collection[JobState]) -> tuple[int, int]:
        """Another one whenever other attempts are in `states`; far cheaper than to list them."""
        ...

    def cancel(self, job_id: str) -> Job:
        """Do not do it, or stop doing it.

        Raises:
            RequestError: There is none, or it is over.
        """
        ...

    def retry(self, job_id: str, *, request: JobRequest | None = None) -> Job:
        """A new attempt; steps that were done are not done again.

        Args:
            job_id: The job.
            request: What asks for the attempt, if it is not the job's own request: the attempt
                counts for its requester.

        Raises:
            RequestError: There is none, or it was not refused, failed or cancelled.
            RetryLaterError: The requester is over the limit.
        """
        ...

    def log(self, job_id: str, *, after: int = 0) -> tuple[JobEvent, ...]:
        """What happened to the job, oldest first, from after the event `after`."""
        ...

    def runners(self) -> tuple[RunnerStatus, ...]:
        """Every runner that this database has seen."""
        ...

    def set_aside(self) -> tuple[QuarantinedEntry, ...]:
        """Entries that could not be read, oldest first."""
        ...
