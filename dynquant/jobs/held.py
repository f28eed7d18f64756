"""The jobs that this process has: what its loop and the threads of their steps share."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from enum import Enum, auto

from dynquant.errors import NotEnoughMemoryError
from dynquant.jobs.job import Job, StepProgress

__all__ = ["Held", "Stop", "StoppedError", "workflow_id"]


class Stop(Enum):
    """Why a step has to stop."""

    LOST = auto()
    """Cancelled, or another runner has the job."""
    LEAVING = auto()
    """This runner stops and gives its jobs back."""


class StoppedError(BaseException):
    """Ends a workflow without a trace in the engine, so that it can go on elsewhere.

    Not an `Exception`: DBOS writes those down as the workflow's result.
    """


@dataclass(eq=False, slots=True)
class Held:
    """A job that this process has.

    Attributes:
        nonce: Of the session that has it.
        taken_at: By this process's stopwatch, as `dispatched_at`.
        dispatched_at: When it was sent to this runner's queue last.
        is_active: Whether a thread works on it.
        has_ended: Whether that thread has written down how it ended.
        memory_needed: Why it has to go to another runner.
    """

    job: Job
    nonce: str
    taken_at: float = field(default_factory=time.monotonic)
    dispatched_at: float | None = None
    is_active: bool = False
    has_ended: bool = False
    memory_needed: NotEnoughMemoryError | None = None
    _stopping: threading.Event = field(default_factory=threading.Event)
    _why: Stop | None = None
    _progress: StepProgress | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def workflow_id(self) -> str:
        """What DBOS knows the attempt by."""
        return workflow_id(self.job.id, self.job.attempt)

    @property
    def busy_secs(self) -> float:
        """Since this process took the job."""
        return time.monotonic() - self.taken_at

    @property
    def why(self) -> Stop | None:
        """Why it has to stop; None while it may go on."""
        return self._why

    def stop(self, why: Stop) -> None:
        """Make its step stop; the first reason counts."""
        with self._lock:
            self._why = self._why or why
        self._stopping.set()

    def is_stopping(self) -> bool:
        """Whether its step has to stop."""
        return self._stopping.is_set()

    def wait(self, secs: float) -> None:
        """Wait, but not longer than until it has to stop."""
        self._stopping.wait(secs)

    def report(self, progress: StepProgress) -> None:
        """Remember how far it is; the loop writes down only the latest."""
        with self._lock:
            self._progress = progress

    def take_progress(self) -> StepProgress | None:
        """What is new since the last call."""
        with self._lock:
            progress, self._progress = self._progress, None
        return progress


def workflow_id(job_id: str, attempt: int) -> str:
    """What DBOS knows an attempt of a job by."""
    return f"{job_id}-{attempt}"
