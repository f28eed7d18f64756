"""The desks of a Space, whose pages everybody can open: what is private is not there.

Operators see their private jobs where the runners are: `dynquant jobs list`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from dynquant.errors import RequestError
from dynquant.jobs.job import Job
from dynquant.jobs.ports import JobEvent, RunnerStatus
from dynquant.jobs.request import JobRequest
from dynquant.watch.public import num_running, public_jobs, public_status
from dynquant.watch.status import WatchStatus
from dynquant.web.desk import JobDesk
from dynquant.web.watch_desk import WatchDesk

__all__ = ["PublicDesk", "PublicWatch"]

_MAX_JOBS = 500
"""Looked at for what runners do, and for what the watcher queued lately."""


class PublicDesk:
    """A `JobDesk` that shows the public jobs of another one; private ones are only handed in."""

    def __init__(self, desk: JobDesk) -> None:
        self._desk = desk

    def submit(self, request: JobRequest) -> Job:
        """See `JobDesk`."""
        return self._desk.submit(request)

    def get(self, job_id: str) -> Job:
        """See `JobDesk`."""
        with suppress(RequestError):
            job = self._desk.get(job_id)
            if not job.is_private:
                return job
        # The same sentence for both: it does not tell that there is a private one.
        raise RequestError(
            f"There is no job '{job_id[:64]}' here. If this Space has just started, the runners "
            "will tell it about their jobs within a minute. Private jobs are not shown on a Space; "
            "run 'dynquant jobs show' where the runner is."
        )

    def list(self, *, limit: int) -> tuple[Job, ...]:
        """See `JobDesk`."""
        return public_jobs(self._desk.list(limit=limit))

    def cancel(self, job_id: str) -> Job:
        """See `JobDesk`."""
        self.get(job_id)
        return self._desk.cancel(job_id)

    def retry(self, job_id: str) -> Job:
        """See `JobDesk`."""
        self.get(job_id)
        return self._desk.retry(job_id)

    def log(self, job_id: str) -> tuple[JobEvent, ...]:
        """See `JobDesk`."""
        self.get(job_id)
        return self._desk.log(job_id)

    def runners(self) -> tuple[RunnerStatus, ...]:
        """See `JobDesk`."""
        jobs = self.list(limit=_MAX_JOBS)
        return tuple(
            replace(runner, num_running=num_running(jobs, runner.id))
            for runner in self._desk.runners()
        )


class PublicWatch:
    """A `WatchDesk` that shows what is public of the watcher beside these pages."""

    def __init__(self, watch: WatchDesk, desk: PublicDesk) -> None:
        self._watch = watch
        self._desk = desk

    def status(self) -> WatchStatus:
        """See `WatchDesk`."""
        return public_status(self._watch.status(), self._desk.list(limit=_MAX_JOBS))

    def sweep(self) -> str:
        """See `WatchDesk`."""
        return self._watch.sweep()

    def pause(self) -> str:
        """See `WatchDesk`."""
        return self._watch.pause()

    def resume(self) -> str:
        """See `WatchDesk`."""
        return self._watch.resume()
