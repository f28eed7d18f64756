"""Public views show no private job, rule or model, by name, by number or by position."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from dynquant.jobs.job import Job, JobState
from dynquant.jobs.request import JobRequest
from dynquant.watch.config import Rule, WatchConfig
from dynquant.watch.public import num_running, public_jobs, public_status
from dynquant.watch.records import SeenModel, SweepReport
from dynquant.watch.skips import Skip
from dynquant.watch.status import WatchStatus

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


def make_job(
    job_id: str = "c0ffee", *, state: JobState = JobState.WAITING, runner: str = "", **request: Any
) -> Job:
    position = request.pop("position", None)
    fields: dict[str, Any] = {"model": "org/M", "targets_bpw": (4.5,), "requester": "ann"}
    return Job(
        id=job_id,
        request=JobRequest(**fields | request),
        recipe_version=1,
        submitted_at=NOON,
        state=state,
        runner=runner,
        position=position,
    )


@pytest.mark.parametrize(
    ("asked", "state", "is_private"),
    [
        ({}, JobState.WAITING, False),
        ({"private": True}, JobState.WAITING, True),
        ({"private": True}, JobState.PUBLISHED, True),
        ({"source_is_private": True}, JobState.RUNNING, True),
        ({"source_is_private": True}, JobState.PUBLISHED, True),
        ({"source_is_private": True, "private": True}, JobState.PUBLISHED, True),
        ({"source_is_private": True, "public": True}, JobState.RUNNING, True),
        ({"source_is_private": True, "public": True}, JobState.FAILED, True),
        ({"source_is_private": True, "public": True}, JobState.PUBLISHED, False),
        ({"public": True}, JobState.WAITING, False),
    ],
)
def test_a_job_is_private_by_what_it_publishes_or_by_its_model(asked, state, is_private):
    assert make_job(state=state, **asked).is_private == is_private


def test_private_jobs_take_no_place_in_the_line_that_strangers_see():
    jobs = [
        make_job("c", position=5),
        make_job("hidden", position=2, private=True),
        make_job("a", position=1),
        make_job("running", state=JobState.RUNNING, runner="mac"),
        make_job("hidden too", state=JobState.RUNNING, runner="mac", source_is_private=True),
    ]
    shown = public_jobs(jobs)
    assert [(job.id, job.position) for job in shown] == [("c", 2), ("a", 1), ("running", None)]
    assert (num_running(shown, "mac"), num_running(jobs, "mac")) == (1, 2)


def make_status(**overrides: Any) -> WatchStatus:
    fields: dict[str, Any] = {"config": None, "cron": "* * * * *"}
    return WatchStatus(**fields | overrides)


def test_private_rules_and_those_who_opted_out_stay_with_the_watcher():
    rules = (
        Rule(name="seen", destination="you"),
        Rule(name="hidden", destination="secret-project", private=True),
    )
    status = make_status(config=WatchConfig(rules=rules, opt_out=("shy",)))
    found = public_status(status, ())
    assert found.config == WatchConfig(rules=rules[:1])


@pytest.mark.harden("web")
def test_private_models_and_what_was_queued_in_private_are_named_nowhere():
    latest = (
        SeenModel(repo_id="org/Seen", sha="1", fingerprint="f", job_id="seen"),
        SeenModel(repo_id="org/Secret", sha="2", fingerprint="f", job_id="hidden"),
        SeenModel(repo_id="me/Mine", sha="3", fingerprint="", skip=Skip.PRIVATE),
        SeenModel(repo_id="org/Quant", sha="4", fingerprint="", skip=Skip.QUANT),
    )
    report = SweepReport(
        started_at=NOON,
        secs=1.0,
        num_seen=9,
        num_matched=2,
        queued=("org/Seen", "org/Secret"),
        skipped={Skip.PRIVATE: 3, Skip.QUANT: 4},
        sentence="The Hub took too long to answer about 'me/Mine'.",
    )
    status = make_status(latest=latest, reports=(report,), problem="line 3: 'me/Mine' is no rule.")
    found = public_status(status, [make_job("seen", model="org/Seen")])
    assert [known.repo_id for known in found.latest] == ["org/Seen", "org/Quant"]
    (shown,) = found.reports
    assert (shown.queued, shown.skipped) == (("org/Seen",), {Skip.QUANT: 4})
    assert (shown.num_seen, shown.num_matched) == (5, 1)
    assert not any(word in repr(found) for word in ("Secret", "Mine"))
    assert found.problem
    assert shown.sentence
