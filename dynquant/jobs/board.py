"""The board: what the web, the watcher and the command line ask of the jobs."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from dynquant.errors import RequestError
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
from dynquant.model.naming import is_ours
from dynquant.quant.recipe import RECIPE_VERSION

__all__ = ["DatabaseBoard"]

_GB = 10**9


class DatabaseBoard:
    """A `JobBoard` over the database; runs nothing, and needs no runner to be running."""

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
            daily_limit: For what is submitted here.
            published: Says whether what jobs published is still there; None takes it to be.
            timing: When a runner counts as dead.

        Raises:
            InvalidOptionError: Not a database that this version of dynquant can use.
            RetryLaterError: It does not answer.
        """
        self._database = Database(url)
        self._store = JobStore(self._database)
        self._registry = Registry(self._database)
        self._daily_limit = daily_limit
        self._published = published
        self._dead_after_secs = (timing or Timing()).dead_after_secs

    def close(self) -> None:
        """Let go of the database."""
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
        """See `JobBoard`."""
        pinned = replace(request, revision=revision_sha, source_is_private=source_is_private)
        # What cannot be read back must not get into the queue.
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
            with suppress(TransitionError):  # somebody else was quicker
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
        """See `JobBoard`."""
        return self._placed([self._store.get(job_id)])[0]

    def list(
        self,
        *,
        states: Collection[JobState] = (),
        requester: str | None = None,
        limit: int = 100,
    ) -> tuple[Job, ...]:
        """See `JobBoard`."""
        return self._placed(self._store.find(states=states, requester=requester, limit=limit))

    def mark(self, states: Collection[JobState]) -> tuple[int, int]:
        """See `JobBoard`."""
        return self._store.mark(states)

    def cancel(self, job_id: str) -> Job:
        """See `JobBoard`."""
        try:
            return self._store.cancel(job_id)
        except TransitionError as error:
            raise RequestError("This job is over, so it cannot be cancelled any more.") from error

    def retry(self, job_id: str, *, request: JobRequest | None = None) -> Job:
        """See `JobBoard`."""
        try:
            job = self._store.retry(job_id, request=request, daily_limit=self._daily_limit)
        except TransitionError as error:
            raise RequestError(
                "Only a job that was refused, failed or was cancelled can be retried."
            ) from error
        return self._placed([job])[0]

    def log(self, job_id: str, *, after: int = 0) -> tuple[JobEvent, ...]:
        """See `JobBoard`."""
        return self._store.log(job_id, after=after)

    def runners(self) -> tuple[RunnerStatus, ...]:
        """See `JobBoard`."""
        return self._registry.statuses(
            num_running=self._store.num_running(), dead_after_secs=self._dead_after_secs
        )

    def set_aside(self) -> tuple[QuarantinedEntry, ...]:
        """See `JobBoard`."""
        return self._store.set_aside()

    def _owned(self, job: Job, request: JobRequest) -> Job:
        """A job that a stranger asked for first: from now on it is this machine's to cancel."""
        with suppress(TransitionError):  # it ended meanwhile
            if job.state is JobState.CANCELLED:
                return self._store.retry(job.id, request=request, daily_limit=self._daily_limit)
            if not job.is_over:
                self._store.adopt(job.id, request)
        return self._store.get(job.id)

    def _is_deleted(self, job: Job, request: JobRequest) -> bool:
        """Whether `request` is for what a job published and somebody deleted since.

        The watcher never asks: it would make again by itself what its operator deleted.
        """
        if (
            self._published is None
            or job.state is not JobState.PUBLISHED
            or request.priority is Priority.WATCHER
        ):
            return False
        return are_deleted(job, self._published)

    def _placed(self, jobs: Collection[Job]) -> tuple[Job, ...]:
        """`jobs` with the place in the line of those that wait, and what they wait for."""
        if not any(job.state is JobState.WAITING for job in jobs):
            return tuple(map(_with_step_eta, jobs))
        places = {job.id: place for place, job in enumerate(self._store.line(), start=1)}
        alive = [runner for runner in self.runners() if runner.is_alive]
        job_secs = self._store.typical_secs()
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
            f"It needs about {need / _GB:.0f} GB of memory, more than any runner has that is "
            "running. It waits for one that has it."
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
