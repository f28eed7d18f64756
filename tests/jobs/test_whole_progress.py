from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from dynquant.convert import STEPS
from dynquant.jobs.job import JobState, StepProgress
from dynquant.jobs.ports import JobEvent
from dynquant.jobs.whole_progress import TYPICAL_SHARES, shares_of, whole_progress
from tests.runner.test_live_board import make_job

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)
SECS = dict(zip(STEPS, (1, 9, 40, 30, 5, 10, 1, 4), strict=True))
"""Step → seconds that it took in an earlier job; a hundred in all."""


def history(secs=SECS):
    at, log = BEGAN, [JobEvent(number=0, at=BEGAN, kind="job", sentence="Asked for by ann.")]
    for number, (step, taken) in enumerate(secs.items(), start=1):
        log.append(JobEvent(number=number, at=at, kind="step", sentence=f"Step {step} begins."))
        at += timedelta(seconds=taken)
    return log, at


def running(step: str, fraction: float, eta_secs: float | None = None):
    progress = StepProgress(step=step, fraction=fraction, eta_secs=eta_secs)
    return replace(make_job(), state=JobState.RUNNING, progress=progress)


def test_shares_are_those_of_earlier_jobs():
    assert shares_of([history()]) == pytest.approx({step: SECS[step] / 100 for step in STEPS})
    slow_network = dict.fromkeys(STEPS, 0.0) | {"download": 60.0}
    both = shares_of([history(), history(slow_network)])
    assert both["download"] == pytest.approx((0.09 + 1.0) / 2)
    assert sum(both.values()) == pytest.approx(1.0)


def test_a_job_that_did_not_do_every_step_tells_nothing():
    resumed = {step: secs for step, secs in SECS.items() if step != "download"}
    at_once = dict.fromkeys(STEPS, 0)
    for histories in ([], [history(resumed)], [history(at_once)]):
        assert shares_of(histories) == TYPICAL_SHARES
    assert sum(TYPICAL_SHARES.values()) == pytest.approx(1.0)
    assert set(TYPICAL_SHARES) == set(STEPS)


def test_the_bar_never_begins_again_with_a_step():
    shares = shares_of([history()])
    found = []
    for step in STEPS:
        for fraction in (0.0, 0.5, 1.0):
            progress = whole_progress(running(step, fraction), shares)
            assert progress is not None
            found.append(progress.fraction)
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] == pytest.approx(1)


def test_the_time_left_counts_the_later_steps_at_the_rate_of_this_one():
    shares = shares_of([history()])
    progress = whole_progress(running("measure", 0.5, eta_secs=60.0), shares)
    assert progress is not None
    assert progress.fraction == pytest.approx(0.30)
    assert progress.eta_secs == pytest.approx(60.0 / 20 * 70)
    for unknown in (running("measure", 0.5), running("measure", 0.0, eta_secs=60.0)):
        progress = whole_progress(unknown, shares)
        assert progress is not None
        assert progress.eta_secs is None
    assert whole_progress(replace(make_job(), progress=None), shares) is None
