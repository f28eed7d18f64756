"""One step: retried while that may help, stopped on request, its errors as an outcome."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from dynquant.errors import (
    HubQuotaError,
    HubUnavailableError,
    NonFiniteError,
    NotEnoughMemoryError,
    Reason,
    StorageFullError,
    UnsupportedModelError,
    VerificationError,
)
from dynquant.jobs.held_job import HeldJob, StoppedError
from dynquant.jobs.job import Job, JobState, PublishedRepo, StepProgress
from dynquant.jobs.steps import StepResult, do_step
from dynquant.jobs.timing import Timing
from tests.jobs.arena import make_request

IMPATIENT = Timing(first_delay_secs=0.001, longest_delay_secs=0.004, retry_for_secs=0.02)


class ScriptedSteps:
    """Follows a script of actions; the last action is repeated."""

    def __init__(self, *script: Callable[[HeldJob | None], str]) -> None:
        self._script = list(script)
        self.num_runs = 0
        self.held: HeldJob | None = None

    def run(self, step, request, results, *, job_id, report, is_cancelled) -> str:
        self.num_runs += 1
        action = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        return action(self.held)

    def release(self, job_id: str) -> None: ...

    def local_jobs(self) -> list[str]:
        return []


def returning(text: str) -> Callable[[HeldJob | None], str]:
    return lambda held: text


def raising(error: Exception) -> Callable[[HeldJob | None], str]:
    def run(held: HeldJob | None) -> str:
        raise error

    return run


def make_held() -> HeldJob:
    job = Job(id="0123", request=make_request(), recipe_version=1, submitted_at=datetime.now(UTC))
    return HeldJob(job=job, nonce="s")


def do(steps: ScriptedSteps, held: HeldJob | None = None, *, step: str = "download") -> StepResult:
    steps.held = held or make_held()
    return do_step(steps, step, steps.held, {}, timing=IMPATIENT)


def test_what_a_step_returns_is_kept_as_it_is():
    result = do(ScriptedSteps(returning('{"a": "ü"}')))
    assert StepResult.from_text(result.to_text()) == StepResult(artefact='{"a": "ü"}')


def test_what_may_work_later_is_tried_again_and_says_so():
    later = raising(HubUnavailableError("The Hub did not answer."))
    steps = ScriptedSteps(later, later, returning("done"))
    held = make_held()
    assert do(steps, held) == StepResult(artefact="done")
    assert steps.num_runs == 3
    progress = held.take_progress()
    assert progress is not None
    assert progress.sentence.startswith("The Hub did not answer. Next try in ")


def test_waits_double_up_to_a_bound_and_end():
    steps = ScriptedSteps(raising(StorageFullError("The disk is full.")))
    result = do(steps)
    # Waits of 1, 2, 4, 4, 4, 4 ms make 19; one more of 4 would be over 20.
    assert steps.num_runs == 7
    assert result.outcome is not None
    assert (result.outcome.state, result.outcome.reason_code) == (JobState.FAILED, "storage_full")
    assert result.outcome.sentence.startswith("The disk is full. This did not change")


def test_ten_minutes_without_network_are_survived_with_the_real_timing():
    timing = Timing()
    waited, delay = 0.0, timing.first_delay_secs
    while waited + delay <= timing.retry_for_secs:
        waited, delay = waited + delay, min(2 * delay, timing.longest_delay_secs)
    assert waited > 1_700


def test_a_job_that_fails_over_one_of_several_repos_says_what_was_published():
    error = HubQuotaError("No storage is left for 'me/b'.")
    error.published = (("me/a", "c0ffee"),)
    outcome = do(ScriptedSteps(raising(error)), step="publish").outcome
    assert outcome is not None
    assert outcome.state == JobState.FAILED
    assert outcome.results == (PublishedRepo(repo_id="me/a", commit_sha="c0ffee"),)
    assert outcome.sentence.endswith("Published before that: me/a.")


@pytest.mark.parametrize(("step", "is_sure"), [("verify", True), ("publish", False)])
def test_nothing_was_published_is_said_only_where_that_is_sure(step, is_sure):
    outcome = do(ScriptedSteps(raising(VerificationError("It differs."))), step=step).outcome
    assert outcome is not None
    assert ("Nothing was published." in outcome.sentence) is is_sure


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (UnsupportedModelError("No.", reason=Reason.GGUF), JobState.REFUSED, "gguf"),
        (NonFiniteError("NaN in a layer.", layer="a"), JobState.FAILED, "non_finite"),
        (ZeroDivisionError(), JobState.FAILED, "internal"),
    ],
)
def test_an_error_that_will_not_pass_ends_the_job(error, state, reason):
    steps = ScriptedSteps(raising(error))
    outcome = do(steps).outcome
    assert outcome is not None
    assert (outcome.state, outcome.reason_code, steps.num_runs) == (state, reason, 1)
    assert StepResult.from_text(StepResult(outcome=outcome).to_text()).outcome == outcome


def test_a_step_that_needs_more_memory_says_so_to_the_engine():
    with pytest.raises(NotEnoughMemoryError):
        do(ScriptedSteps(raising(NotEnoughMemoryError("More.", needed_bytes=5))))


def test_what_a_stopped_step_returns_or_raises_makes_no_difference():
    def stop(held: HeldJob | None) -> str:
        assert held is not None
        held.stop()
        return "too late"

    def stop_and_raise(held: HeldJob | None) -> str:
        stop(held)
        raise UnsupportedModelError("Too late.")

    for action in (stop, stop_and_raise):
        with pytest.raises(StoppedError):
            do(ScriptedSteps(action))


def test_a_wait_for_the_network_ends_when_the_job_is_cancelled():
    held = make_held()

    def fail_and_cancel(_: HeldJob | None) -> str:
        held.stop()
        raise HubUnavailableError("The Hub did not answer.")

    slow = Timing(first_delay_secs=60.0)
    with pytest.raises(StoppedError):
        do_step(ScriptedSteps(fail_and_cancel), "download", held, {}, timing=slow)


def test_only_the_latest_progress_is_kept():
    held = make_held()
    held.report(StepProgress(step="download", fraction=0.1))
    held.report(StepProgress(step="download", fraction=0.2))
    assert held.take_progress() == StepProgress(step="download", fraction=0.2)
    assert held.take_progress() is None
