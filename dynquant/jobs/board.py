"""The board: jobs as the pages, the watcher and the command line submit and list them."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from dynquant.errors import RequestError
from dynquant.jobs import journal
from dynquant.jobs.database import Database
from dynquant.jobs.fair_queue import expected_wait_secs
from dynquant.jobs.job import Job, JobState, TransitionError
from dynquant.jobs.ports import JobEvent, PublishedRepos, QuarantinedEntry, RunnerStatus
from dynquant.jobs.published_results import are_deleted
from dynquant.jobs.registry import Registry
from dynquant.jobs.request import (
    JobRequest,
    Priority,
    check_notify_url,
    request_from_json,
    request_to_json,
)
from dynquant.jobs.store import JobStore
from dynquant.jobs.timing import Timing
from dynquant.jobs.waiting_line import typical_secs, waiting_line
from dynquant.model.naming import is_ours
from dynquant.quant.recipe import RECIPE_VERSION

__all__ = ["DatabaseBoard"]

_GB = 10**9


class DatabaseBoard:
    """The jobs of all runners in the database; it works while no runner is running."""

    def __init__(
        self,
        url: str,
        *,
        daily_limit: int | None = None,
        published: PublishedRepos | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Open the database.

        Args:
            url: Of the database.
            daily_limit: Jobs per requester within 24 hours; None is no limit.
            published: Tells whether published repos are still on the Hub; None assumes that.
            timing: When a runner counts as dead.

        Raises:
            InvalidOptionError: This version of dynquant cannot use the database.
            RetryLaterError: It does not answer.
        """
        self._database = Database(url)
        self._store = JobStore(self._database)
        self._registry = Registry(self._database)
        self._daily_limit = daily_limit
        self._published = published
        self._dead_after_secs = (timing or Timing()).dead_after_secs

    def close(self) -> None:
        """Close the connections to the database."""
        self._database.close()

    def submit(
        self,
        request: JobRequest,
        *,
        revision_sha: str,
        source_is_private: bool,
        recipe_version: int,
        needed_memory_bytes: int | None = None,
    ) -> Job:
        """Queue a request; returns the job that exists already if an equal request was queued.

        A published job whose repos were deleted since gets a new attempt, unless the watcher asks.

        Args:
            request: The request.
            revision_sha: Commit of the model, from the Hub.
            source_is_private: Whether the model is private, from the Hub.
            recipe_version: Version of the recipe to use.
            needed_memory_bytes: Memory that a runner must have for it, if known.

        Raises:
            RequestError: The request is invalid.
            RetryLaterError: The requester is over the limit, or the database does not answer.
        """
        pinned = replace(request, revision=revision_sha, source_is_private=source_is_private)
        # A request that cannot be read back must not get into the queue.
        checked = request_from_json(request_to_json(pinned))
        check_notify_url(checked)
        job = self._store.submit(
            checked,
            recipe_version=recipe_version,
            needed_memory_bytes=needed_memory_bytes,
            daily_limit=self._daily_limit,
        )
        if is_ours(checked.requester) and not is_ours(job.request.requester):
            job = self._owned(job, checked)
        if self._is_deleted(job, checked):
            with suppress(TransitionError):  # another requester was faster
                self._store.make_again(job.id, checked, daily_limit=self._daily_limit)
            job = self._store.get(job.id)
        return self._placed([job])[0]

    def submit_anew(self, request: JobRequest) -> Job:
        """See `web.ports.JobsPort`: as `submit`, and an ended job without results starts again."""
        assert request.revision is not None
        job = self.submit(
            request,
            revision_sha=request.revision,
            source_is_private=request.source_is_private,
            recipe_version=RECIPE_VERSION,
        )
        if job.is_over and job.state is not JobState.PUBLISHED:
            with suppress(RequestError):  # another visitor retried it meanwhile
                self.retry(job.id, request=request)
            job = self.get(job.id)
        return job

    def get(self, job_id: str) -> Job:
        """The job.

        Raises:
            RequestError: There is no such job.
        """
        return self._placed([self._store.get(job_id)])[0]

    def list(
        self,
        *,
        states: Collection[JobState] = (),
        requester: str | None = None,
        limit: int = 100,
    ) -> tuple[Job, ...]:
        """Jobs, the latest submission first; of all states if `states` is empty."""
        return self._placed(self._store.find(states=states, requester=requester, limit=limit))

    def mark(self, states: Collection[JobState]) -> tuple[int, int]:
        """A value that changes when other attempts are in `states`; far cheaper than `list`."""
        return self._store.mark(states)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that waits or runs.

        Raises:
            RequestError: There is no such job, or it is over.
        """
        try:
            return self._store.cancel(job_id)
        except TransitionError as error:
            raise RequestError("This job is over, so it cannot be cancelled any more.") from error

    def retry(self, job_id: str, *, request: JobRequest | None = None) -> Job:
        """Start a new attempt; steps that were done are not repeated.

        Args:
            job_id: The job.
            request: Asks for the attempt in place of the job's own request; the attempt counts
                for its requester.

        Raises:
            RequestError: There is no such job, or it was not refused, failed or cancelled.
            RetryLaterError: The requester is over the limit.
        """
        try:
            job = self._store.retry(job_id, request=request, daily_limit=self._daily_limit)
        except TransitionError as error:
            raise RequestError(
                "Only a job that was refused, failed or was cancelled can be retried."
            ) from error
        return self._placed([job])[0]

    def log(self, job_id: str, *, after: int = 0) -> tuple[JobEvent, ...]:
        """Events of the job with a number above `after`, oldest first."""
        return journal.events(self._database, job_id, after=after)

    def runners(self) -> tuple[RunnerStatus, ...]:
        """Every runner that ever registered in this database."""
        return self._registry.statuses(
            num_running=self._store.num_running(), dead_after_secs=self._dead_after_secs
        )

    def quarantined(self) -> tuple[QuarantinedEntry, ...]:
        """Entries that could not be read, oldest first."""
        return journal.quarantined(self._database)

    def _owned(self, job: Job, request: JobRequest) -> Job:
        """A job of another requester, transferred to this machine, which alone may cancel it."""
        with suppress(TransitionError):  # it ended meanwhile
            if job.state is JobState.CANCELLED:
                return self._store.retry(job.id, request=request, daily_limit=self._daily_limit)
            if not job.is_over:
                self._store.adopt(job.id, request)
        return self._store.get(job.id)

    def _is_deleted(self, job: Job, request: JobRequest) -> bool:
        """Whether `request` is for a published job whose repos were deleted since.

        Not looked up for the watcher, which would else publish again what its operator deleted.
        """
        if (
            self._published is None
            or job.state is not JobState.PUBLISHED
            or request.priority is Priority.WATCHER
        ):
            return False
        return are_deleted(job, self._published)

    def _placed(self, jobs: Collection[Job]) -> tuple[Job, ...]:
        """`jobs` with their place in the line if they wait, and the reason why."""
        if not any(job.state is JobState.WAITING for job in jobs):
            return tuple(map(_with_step_eta, jobs))
        places = {job.id: place for place, job in enumerate(waiting_line(self._database), start=1)}
        alive = [runner for runner in self.runners() if runner.is_alive]
        job_secs = typical_secs(self._database)
        return tuple(
            _waiting(job, places[job.id], alive, job_secs)
            if job.state is JobState.WAITING and job.id in places
            else _with_step_eta(job)
            for job in jobs
        )


def _with_step_eta(job: Job) -> Job:
    if job.state is not JobState.RUNNING or job.progress is None:
        return job
    return replace(job, eta_secs=job.progress.eta_secs)


def _waiting(
    job: Job, position: int, alive: Collection[RunnerStatus], job_secs: float | None
) -> Job:
    need = job.needed_memory_bytes or 0
    able = [runner for runner in alive if runner.memory_bytes >= need]
    sentence = job.sentence
    if not alive:
        sentence = "It waits for a runner: none is running."
    elif not able:
        sentence = (
            f"It needs about {need / _GB:.0f} GB of memory, more than any running runner has. It "
            "waits for a runner with that much."
        )
    return replace(
        job,
        position=position,
        sentence=sentence,
        eta_secs=expected_wait_secs(
            num_ahead=position - 1,
            num_running=sum(runner.num_running for runner in able),
            num_slots=sum(runner.num_slots for runner in able),
            job_secs=job_secs,
        ),
    )
