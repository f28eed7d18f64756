"""The budget of elastic runners: never overrun, whatever ran before and however it ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.rented.budget import (
    Budget,
    budget_left_micro_usd,
    hindrance,
    spent_micro_usd,
)
from dynquant.rented.job import Stage
from tests.rented.factories import OFFER, make_job

BUDGET = Budget(at_once=2, micro_usd_per_day=5_000_000)

jobs = st.lists(
    st.builds(
        make_job,
        stage=st.sampled_from(Stage),
        running_secs=st.integers(0, OFFER.timeout_secs),
        message=st.sampled_from(["", "Job timeout", "Job failed with exit code: 1"]),
    ),
    max_size=8,
)


@pytest.mark.harden("mishaps")
@given(jobs, st.integers(1, 20_000_000))
def test_one_more_job_within_what_is_left_never_overruns_the_budget(before, limit):
    budget = Budget(at_once=99, micro_usd_per_day=limit)
    left = budget_left_micro_usd(before, budget)
    assert left == 0 or spent_micro_usd(before) + left <= limit
    assert hindrance(before, budget) is not None or left > 0


@given(jobs)
def test_a_job_that_is_over_costs_no_more_than_before_and_no_less_than_it_ran(before):
    running = [make_job(stage=Stage.RUNNING) for _ in before]
    assert spent_micro_usd(before) <= spent_micro_usd(running)
    for job in before:
        paid = job.running_secs / 60 * OFFER.flavor.micro_usd_per_minute
        assert spent_micro_usd([job]) >= min(paid, OFFER.worst_micro_usd)


def test_no_more_jobs_run_at_once_than_the_limit():
    assert hindrance([make_job()], BUDGET) is None
    assert "AT_ONCE" in str(hindrance([make_job(), make_job(stage=Stage.SCHEDULING)], BUDGET))
    assert hindrance([make_job(), make_job(stage=Stage.COMPLETED)], BUDGET) is None


def test_three_jobs_that_fail_in_a_row_are_the_last_of_the_day():
    failed = make_job(stage=Stage.ERROR, message="Job failed with exit code: 1")
    done, late = make_job(stage=Stage.COMPLETED), make_job(stage=Stage.ERROR, message="Job timeout")
    assert hindrance([failed, failed], BUDGET) is None
    assert "The last 3 Jobs failed (Job failed" in str(hindrance([done, *[failed] * 3], BUDGET))
    assert hindrance([failed, failed, done, failed], BUDGET) is None
    assert hindrance([failed, failed, late], BUDGET) is None


def test_a_budget_that_is_spent_is_told():
    budget = Budget(at_once=9, micro_usd_per_day=OFFER.worst_micro_usd)
    assert "are spent" in str(hindrance([make_job()], budget))


def test_a_job_without_our_labels_costs_nothing_of_the_budget():
    assert spent_micro_usd([make_job(labels={}), make_job(labels={"dynquant-x": "9"})]) == 0
