"""One step of a job: run, retried while that may help, and its errors turned into an outcome."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from dynquant.errors import (
    DynquantError,
    NeverPublishError,
    NotEnoughMemoryError,
    RequestError,
    RetryLaterError,
)
from dynquant.jobs.held_job import HeldJob, StoppedError
from dynquant.jobs.job import JobState, Outcome, PublishedRepo, StepProgress
from dynquant.jobs.job_text import outcome_from_text, outcome_to_text
from dynquant.jobs.ports import StepRunner
from dynquant.jobs.timing import Timing

__all__ = ["UNFORESEEN", "StepResult", "do_step"]

UNFORESEEN = Outcome(
    state=JobState.FAILED,
    reason_code="internal",
    sentence=(
        "Something went wrong that dynquant did not foresee; the log of its runner says what. "
        "Retry the job, and report it if that does not help."
    ),
)
"""Outcome of a job that failed because of a bug."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """The text that a step returned, or the outcome of a job that ended in it."""

    artefact: str = ""
    outcome: Outcome | None = None

    def to_text(self) -> str:
        """As DBOS keeps it."""
        outcome = outcome_to_text(self.outcome) if self.outcome else None
        return json.dumps({"artefact": self.artefact, "outcome": outcome})

    @classmethod
    def from_text(cls, text: str) -> StepResult:
        """The result that `to_text` wrote."""
        raw = json.loads(text)
        outcome = outcome_from_text(raw["outcome"]) if raw["outcome"] else None
        return cls(artefact=raw["artefact"], outcome=outcome)


def do_step(
    runner: StepRunner, step: str, held: HeldJob, results: Mapping[str, str], *, timing: Timing
) -> StepResult:
    """Do `step` of a job that this process holds.

    Raises:
        StoppedError: It was stopped.
        NotEnoughMemoryError: A runner with more memory has to do it.
    """
    waited_secs, delay_secs = 0.0, timing.first_delay_secs
    while True:
        try:
            artefact = runner.run(
                step,
                held.job.request,
                results,
                job_id=held.job.id,
                report=held.report,
                is_cancelled=held.is_stopping,
            )
        except Exception as error:
            if held.is_stopping():
                raise StoppedError from error
            may_wait = waited_secs + delay_secs <= timing.retry_for_secs
            if isinstance(error, NotEnoughMemoryError):
                raise
            if not (isinstance(error, RetryLaterError) and may_wait):
                return StepResult(outcome=_outcome(error, step, held.job.id))
            held.report(_waiting(step, error, delay_secs))
            held.wait(delay_secs)
            waited_secs += delay_secs
            delay_secs = min(2 * delay_secs, timing.longest_delay_secs)
        else:
            if not held.is_stopping():
                return StepResult(artefact=artefact)
        if held.is_stopping():
            raise StoppedError


def _waiting(step: str, error: RetryLaterError, delay_secs: float) -> StepProgress:
    return StepProgress(step=step, sentence=f"{error} Next try in {delay_secs:.0f} s.")


def _outcome(error: Exception, step: str, job_id: str) -> Outcome:
    """The outcome of a job that failed with `error`."""
    if not isinstance(error, DynquantError):
        _logger.error("Step %s failed", step, exc_info=error, extra={"job_id": job_id})
        return UNFORESEEN
    sentence = str(error)
    if isinstance(error, RetryLaterError):
        sentence += " This did not change for a long time. Retry the job once it has."
    elif isinstance(error, NeverPublishError) and step != "publish":
        sentence += " Nothing was published."
    if error.published:
        sentence += f" Published before that: {', '.join(repo for repo, _ in error.published)}."
    return Outcome(
        state=JobState.REFUSED if isinstance(error, RequestError) else JobState.FAILED,
        reason_code=str(error.reason),
        sentence=sentence,
        results=tuple(PublishedRepo(repo_id=repo, commit_sha=sha) for repo, sha in error.published),
    )
