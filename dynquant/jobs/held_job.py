"""A job that this process holds: the state that the engine's loop and the step's thread share."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from dynquant.errors import NotEnoughMemoryError
from dynquant.jobs.job import Job, StepProgress

__all__ = ["HeldJob", "StoppedError", "workflow_id"]


class StoppedError(BaseException):
    """Ends a workflow without a result, so that another runner can continue it.

    Not an `Exception`: DBOS writes those down as the workflow's result.
    """


@dataclass(eq=False, slots=True)
class HeldJob:
    """A job that this process holds.

    Attributes:
        nonce: Of the session that holds it.
        taken_at: By this process's monotonic clock, as `dispatched_at`.
        dispatched_at: When it was last sent to this runner's queue.
        is_active: Whether a thread works on it.
        has_ended: Whether that thread has written down its outcome.
        memory_needed: Set if it has to go to a runner with more memory.
    """

    job: Job
    nonce: str
    taken_at: float = field(default_factory=time.monotonic)
    dispatched_at: float | None = None
    is_active: bool = False
    has_ended: bool = False
    memory_needed: NotEnoughMemoryError | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _progress: StepProgress | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def workflow_id(self) -> str:
        """Id of the attempt's workflow in DBOS."""
        return workflow_id(self.job.id, self.job.attempt)

    @property
    def busy_secs(self) -> float:
        """Time since this process took the job."""
        return time.monotonic() - self.taken_at

    def stop(self) -> None:
        """Make its step stop."""
        self._stopping.set()

    def is_stopping(self) -> bool:
        """Whether its step has to stop."""
        return self._stopping.is_set()

    def wait(self, secs: float) -> None:
        """Wait for `secs`, or until it has to stop."""
        self._stopping.wait(secs)

    def report(self, progress: StepProgress) -> None:
        """Remember the progress of its step; the loop writes down only the latest."""
        with self._lock:
            self._progress = progress

    def take_progress(self) -> StepProgress | None:
        """The latest progress, unless it was taken before."""
        with self._lock:
            progress, self._progress = self._progress, None
        return progress


def workflow_id(job_id: str, attempt: int) -> str:
    """Id of an attempt's workflow in DBOS."""
    return f"{job_id}-{attempt}"
