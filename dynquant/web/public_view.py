"""Jobs and watcher without private parts, for the pages of a Space, which are public.

Operators list their private jobs on the runner's machine: `dynquant jobs list`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from dynquant.errors import RequestError
from dynquant.jobs.job import Job
from dynquant.jobs.ports import JobEvent, RunnerStatus
from dynquant.jobs.request import JobRequest
from dynquant.watch.public import num_running, public_jobs, public_status
from dynquant.watch.status import WatchAct, WatchStatus
from dynquant.web.ports import JobsPort, WatchPort

__all__ = ["PublicJobs", "PublicWatch"]

_MAX_JOBS = 500
"""Jobs to count a runner's work from, and to tell which models of the watcher are public."""


class PublicJobs:
    """A `JobsPort` that shows only public jobs; private ones can be submitted."""

    def __init__(self, jobs: JobsPort) -> None:
        self._jobs = jobs

    def submit_anew(self, request: JobRequest) -> Job:
        """See `JobsPort`."""
        return self._jobs.submit_anew(request)

    def get(self, job_id: str) -> Job:
        """See `JobsPort`."""
        with suppress(RequestError):
            job = self._jobs.get(job_id)
            if not job.is_private:
                return job
        # The same message for both, so that it does not reveal a private job.
        raise RequestError(
            f"There is no job '{job_id[:64]}' here. If this Space has just started, the runners "
            "will report their jobs within a minute. Private jobs are not shown on a Space; "
            "run 'dynquant jobs show' where the runner is."
        )

    def list(self, *, limit: int) -> tuple[Job, ...]:
        """See `JobsPort`."""
        return public_jobs(self._jobs.list(limit=limit))

    def cancel(self, job_id: str) -> Job:
        """See `JobsPort`."""
        self.get(job_id)
        return self._jobs.cancel(job_id)

    def retry(self, job_id: str) -> Job:
        """See `JobsPort`."""
        self.get(job_id)
        return self._jobs.retry(job_id)

    def log(self, job_id: str) -> tuple[JobEvent, ...]:
        """See `JobsPort`."""
        self.get(job_id)
        return self._jobs.log(job_id)

    def runners(self) -> tuple[RunnerStatus, ...]:
        """See `JobsPort`."""
        jobs = self.list(limit=_MAX_JOBS)
        return tuple(
            replace(runner, num_running=num_running(jobs, runner.id))
            for runner in self._jobs.runners()
        )


class PublicWatch:
    """A `WatchPort` without private rules and models."""

    def __init__(self, watch: WatchPort, jobs: PublicJobs) -> None:
        self._watch = watch
        self._jobs = jobs

    def status(self) -> WatchStatus:
        """See `WatchPort`."""
        return public_status(self._watch.status(), self._jobs.list(limit=_MAX_JOBS))

    def control(self, act: WatchAct) -> str:
        """See `WatchPort`."""
        return self._watch.control(act)
