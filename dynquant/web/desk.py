"""Where the pages hand in jobs and read of them: on one machine a database, on a Space mail."""

from __future__ import annotations

from contextlib import suppress
from typing import Protocol

from dynquant.errors import RequestError
from dynquant.jobs.job import Job, JobState
from dynquant.jobs.ports import JobBoard, JobEvent, RunnerStatus
from dynquant.jobs.request import JobRequest
from dynquant.quant.recipe import RECIPE_VERSION

__all__ = ["BoardDesk", "JobDesk"]


class JobDesk(Protocol):
    """What the pages need of jobs."""

    def submit(self, request: JobRequest) -> Job:
        """Queue what is asked for; the same request is the same job.

        What was refused, failed or cancelled before gets a new attempt, and what was published and
        is deleted.

        Args:
            request: With the commit as its revision, and whether the model is private.

        Raises:
            RequestError: It makes no sense.
            RetryLaterError: The requester is over the limit, or nobody takes requests now.
        """
        ...

    def get(self, job_id: str) -> Job:
        """The job.

        Raises:
            RequestError: There is none.
        """
        ...

    def list(self, *, limit: int) -> tuple[Job, ...]:
        """Jobs, the latest submission first."""
        ...

    def cancel(self, job_id: str) -> Job:
        """Do not do it, or stop doing it.

        Raises:
            RequestError: There is none, it is over, or it cannot be stopped from here.
        """
        ...

    def retry(self, job_id: str) -> Job:
        """A new attempt.

        Raises:
            RequestError: There is none, or it was not refused, failed or cancelled.
        """
        ...

    def log(self, job_id: str) -> tuple[JobEvent, ...]:
        """What happened to the job, oldest first."""
        ...

    def runners(self) -> tuple[RunnerStatus, ...]:
        """Every runner that was seen."""
        ...


class BoardDesk:
    """A desk in front of a database, which runners on this or other machines read too."""

    def __init__(self, board: JobBoard) -> None:
        self._board = board

    def submit(self, request: JobRequest) -> Job:
        """See `JobDesk`."""
        assert request.revision is not None
        job = self._board.submit(
            request,
            revision_sha=request.revision,
            source_is_private=request.source_is_private,
            recipe_version=RECIPE_VERSION,
        )
        if job.is_over and job.state is not JobState.PUBLISHED:
            with suppress(RequestError):  # somebody else was quicker
                self._board.retry(job.id, request=request)
            job = self._board.get(job.id)
        return job

    def get(self, job_id: str) -> Job:
        """See `JobDesk`."""
        return self._board.get(job_id)

    def list(self, *, limit: int) -> tuple[Job, ...]:
        """See `JobDesk`."""
        return self._board.list(limit=limit)

    def cancel(self, job_id: str) -> Job:
        """See `JobDesk`."""
        return self._board.cancel(job_id)

    def retry(self, job_id: str) -> Job:
        """See `JobDesk`."""
        return self._board.retry(job_id)

    def log(self, job_id: str) -> tuple[JobEvent, ...]:
        """See `JobDesk`."""
        return self._board.log(job_id)

    def runners(self) -> tuple[RunnerStatus, ...]:
        """See `JobDesk`."""
        return self._board.runners()
