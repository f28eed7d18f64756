"""Ports of the pages: to the jobs and to the watcher, each on this machine or a runner's."""

from __future__ import annotations

from typing import Protocol

from dynquant.jobs.job import Job
from dynquant.jobs.ports import JobEvent, RunnerStatus
from dynquant.jobs.request import JobRequest
from dynquant.watch.status import WatchAct, WatchStatus

__all__ = ["JobsPort", "WatchPort"]


class JobsPort(Protocol):
    """Jobs: `jobs.board.DatabaseBoard` on this machine, `web.remote_jobs.RemoteJobs` on a Space."""

    def submit_anew(self, request: JobRequest) -> Job:
        """Queue a request; equal requests are one job.

        A job that was refused, failed or cancelled gets a new attempt, and so does a published one
        whose repos were deleted.

        Args:
            request: With the commit as its revision, and whether the model is private.

        Raises:
            RequestError: The request is invalid.
            RetryLaterError: The requester is over the limit, or the queue is unavailable.
        """
        ...

    def get(self, job_id: str) -> Job:
        """The job.

        Raises:
            RequestError: There is no such job.
        """
        ...

    def list(self, *, limit: int) -> tuple[Job, ...]:
        """Jobs, the latest submission first."""
        ...

    def cancel(self, job_id: str) -> Job:
        """Cancel a job that waits, or stop one that runs.

        Raises:
            RequestError: There is no such job, it is over, or it cannot be stopped from here.
        """
        ...

    def retry(self, job_id: str) -> Job:
        """Start a new attempt.

        Raises:
            RequestError: There is no such job, or it was not refused, failed or cancelled.
        """
        ...

    def log(self, job_id: str) -> tuple[JobEvent, ...]:
        """The events of a job, oldest first."""
        ...

    def runners(self) -> tuple[RunnerStatus, ...]:
        """Every runner that was seen."""
        ...


class WatchPort(Protocol):
    """The watcher: `watch.service.WatchService` here, `web.space_watch.SpaceWatch` elsewhere."""

    def status(self) -> WatchStatus:
        """Its setup and its last sweeps.

        Raises:
            RetryLaterError: No runner has reported, or the database does not answer.
        """
        ...

    def control(self, act: WatchAct) -> str:
        """Carry out a command, without waiting for a sweep; a sentence for the operator.

        Raises:
            RequestError: A sweep runs, the watcher is paused, or its rules cannot be read.
            RetryLaterError: The database does not answer.
        """
        ...
