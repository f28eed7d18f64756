"""Jobs: a request, the states that it goes through, and its attempts.

States:

    waiting ──> running ──> published
       │ ^         │ └────> refused     the request has to change; `reason_code` says why
       │ └─────────┤ └────> failed      `sentence` says what to do
       └───────────┴──────> cancelled

An ended job does not change by itself. `retried` and `made_again` start a new attempt, and keep the
old attempt in the history.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from pydantic import ConfigDict, with_config

from dynquant.errors import Reason
from dynquant.jobs.request import JobRequest

__all__ = [
    "MAX_DEATHS",
    "TERMINAL",
    "Attempt",
    "Job",
    "JobState",
    "Outcome",
    "PublishedRepo",
    "StepProgress",
    "TransitionError",
    "adopted",
    "begun",
    "cancelled",
    "ended",
    "in_step",
    "lost_its_runner",
    "made_again",
    "progressed",
    "put_back",
    "retried",
]

MAX_DEATHS = 3
"""Runners that may die during one attempt before it fails."""

_GB = 10**9

_forbid_unknown_fields = with_config(ConfigDict(extra="forbid"))
"""Has `job_text` refuse jobs with unknown fields."""


class JobState(StrEnum):
    """The state of a job, as people see it."""

    WAITING = "waiting"
    RUNNING = "running"
    PUBLISHED = "published"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL = frozenset({JobState.PUBLISHED, JobState.REFUSED, JobState.FAILED, JobState.CANCELLED})


class TransitionError(ValueError):
    """A job cannot go from its state to the new one."""


@_forbid_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class StepProgress:
    """Progress of a step.

    Attributes:
        fraction: Part of the step that is done, from 0 to 1.
        eta_secs: Time until the step is done, if known.
        layer: The layer that is being processed.
        num_bytes: Bytes read, written or sent so far.
        sentence: A remark for people, such as why the step waits.
    """

    step: str
    fraction: float = 0.0
    eta_secs: float | None = None
    layer: str = ""
    num_bytes: int | None = None
    sentence: str = ""


@_forbid_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRepo:
    """A repo on the Hub, and the commit that made it whole."""

    repo_id: str
    commit_sha: str


@_forbid_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended, unless it was cancelled.

    Attributes:
        reason_code: Why it was refused or failed, as a code.
        sentence: Why, and what to do.
        results: The repos that were published, also if it failed at a later repo.
    """

    state: JobState
    reason_code: str = ""
    sentence: str = ""
    results: tuple[PublishedRepo, ...] = ()


@_forbid_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An earlier attempt of a job, as it ended."""

    number: int
    state: JobState
    step: str
    reason_code: str
    sentence: str
    runner: str
    started_at: datetime | None
    ended_at: datetime | None


@_forbid_unknown_fields
@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the board shows it.

    Attributes:
        request: With the commit as its revision.
        attempt: 1, and one more with every retry.
        progress: Of the current step, or of the step that it stopped in.
        position: Place in the line if it waits, from 1.
        eta_secs: Time until its turn if it waits, until the step is done if it runs; None if it is
            not known.
        runner: Id of the runner that holds it or held it last.
        sentence: Why it waits, was refused or failed, and what to do.
        deaths: How many runners have died during this attempt.
        needed_memory_bytes: Memory that a runner must have for it, once known.
        submitted_at: When this attempt was requested; all times are of the database's clock.
    """

    id: str
    request: JobRequest
    recipe_version: int
    submitted_at: datetime
    attempt: int = 1
    state: JobState = JobState.WAITING
    progress: StepProgress | None = None
    position: int | None = None
    eta_secs: float | None = None
    runner: str = ""
    reason_code: str = ""
    sentence: str = ""
    results: tuple[PublishedRepo, ...] = ()
    deaths: int = 0
    needed_memory_bytes: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    history: tuple[Attempt, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether it is in a terminal state."""
        return self.state in TERMINAL

    @property
    def is_private(self) -> bool:
        """Whether it is hidden from other people: its results are private, or its model is.

        A quant of a private model that was made public on purpose is shown once it is published.
        """
        if self.request.source_is_private:
            return not (self.request.public and self.state is JobState.PUBLISHED)
        return self.request.private


def begun(job: Job, *, runner: str, at: datetime) -> Job:
    """A runner takes the job; a job that was put back continues with its next step."""
    _require(job, JobState.WAITING)
    return replace(
        job,
        state=JobState.RUNNING,
        runner=runner,
        progress=None,
        sentence="",
        started_at=job.started_at or at,
    )


def in_step(job: Job, step: str) -> Job:
    """The runner begins `step`."""
    _require(job, JobState.RUNNING)
    return replace(job, progress=StepProgress(step=step))


def progressed(job: Job, progress: StepProgress) -> Job:
    """The runner reports progress; a late report about an earlier step is ignored."""
    _require(job, JobState.RUNNING)
    if job.progress is None or progress.step != job.progress.step:
        return job
    return replace(job, progress=progress)


def put_back(job: Job, *, sentence: str, needed_memory_bytes: int | None = None) -> Job:
    """The runner gives the job back; steps that are done stay done.

    Args:
        job: It runs.
        sentence: Why it waits again.
        needed_memory_bytes: Memory that it turned out to need.
    """
    _require(job, JobState.RUNNING)
    return replace(
        job,
        state=JobState.WAITING,
        sentence=sentence,
        needed_memory_bytes=needed_memory_bytes or job.needed_memory_bytes,
    )


def lost_its_runner(job: Job, *, at: datetime, memory_bytes: int) -> Job:
    """Its runner, with `memory_bytes` of memory, died or does not answer.

    The job waits for another runner, or fails after `MAX_DEATHS`.
    """
    _require(job, JobState.RUNNING)
    deaths = job.deaths + (job.progress is not None)  # None: no step had begun
    if deaths < MAX_DEATHS:
        sentence = f"Its runner {job.runner} stopped answering; another runner continues it."
        return replace(job, state=JobState.WAITING, deaths=deaths, sentence=sentence)
    if job.needed_memory_bytes:
        need = f"about {_gigabytes(job.needed_memory_bytes)}"
    else:
        need = f"probably more than the {_gigabytes(memory_bytes)} of the last runner"
    return ended(
        replace(job, deaths=deaths),
        Outcome(
            state=JobState.FAILED,
            reason_code=Reason.KILLED_RUNNERS,
            sentence=(
                f"{deaths} runners died while converting this model: it needs {need} of memory. "
                "Start a runner with that much, then retry the job."
            ),
        ),
        at=at,
    )


def ended(job: Job, outcome: Outcome, *, at: datetime) -> Job:
    """The attempt is over."""
    _require(job, JobState.RUNNING)
    if outcome.state not in TERMINAL:
        raise TransitionError(f"A job cannot end as {outcome.state}.")
    return replace(
        job,
        state=outcome.state,
        reason_code=outcome.reason_code,
        sentence=outcome.sentence,
        results=outcome.results,
        ended_at=at,
    )


def cancelled(job: Job, *, at: datetime) -> Job:
    """Its requester, or the operator, cancels the job."""
    _require(job, JobState.WAITING, JobState.RUNNING)
    return replace(
        job, state=JobState.CANCELLED, reason_code=Reason.CANCELLED, sentence="", ended_at=at
    )


def retried(job: Job, *, at: datetime, request: JobRequest | None = None) -> Job:
    """A new attempt at a job that was refused, failed or was cancelled.

    If another request for the same job asks for it, the attempt belongs to its requester.
    """
    _require(job, JobState.REFUSED, JobState.FAILED, JobState.CANCELLED)
    asks = request or job.request
    return _new_attempt(
        job,
        replace(
            job.request,
            requester=asks.requester,
            requester_id=asks.requester_id,
            priority=asks.priority,
            notify_url=asks.notify_url,
        ),
        at,
    )


def adopted(job: Job, request: JobRequest) -> Job:
    """The job, transferred to the requester of `request`, who alone may cancel it from now on."""
    _require(job, JobState.WAITING, JobState.RUNNING)
    owned = replace(job.request, requester=request.requester, requester_id=request.requester_id)
    return replace(job, request=owned)


def made_again(job: Job, request: JobRequest, *, at: datetime) -> Job:
    """A new attempt, for `request`, at a job whose published repos were deleted."""
    _require(job, JobState.PUBLISHED)
    return _new_attempt(job, request, at)


def _new_attempt(job: Job, request: JobRequest, at: datetime) -> Job:
    attempt = Attempt(
        number=job.attempt,
        state=job.state,
        step=job.progress.step if job.progress else "",
        reason_code=job.reason_code,
        sentence=job.sentence,
        runner=job.runner,
        started_at=job.started_at,
        ended_at=job.ended_at,
    )
    return Job(
        id=job.id,
        request=request,
        recipe_version=job.recipe_version,
        submitted_at=at,
        attempt=job.attempt + 1,
        needed_memory_bytes=job.needed_memory_bytes,
        history=(*job.history, attempt),
    )


def _require(job: Job, *states: JobState) -> None:
    if job.state not in states:
        raise TransitionError(f"Job {job.id} is {job.state}, not {' or '.join(states)}.")


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / _GB:.0f} GB"
