"""Runners that die, freeze or lose the database: every job is done once, finished steps too."""

from __future__ import annotations

import signal
from contextlib import closing

import pytest
import sqlalchemy as sa

from dynquant.convert import STEPS
from dynquant.jobs.database import Database
from dynquant.jobs.job import JobState
from tests.jobs.arena import PATIENT, kill


def test_a_job_goes_on_where_its_killed_runner_was(arena):
    arena.command("encode", "die-once")
    job = arena.submit()
    arena.start().wait()
    assert arena.board.get(job.id).state is JobState.RUNNING
    arena.start()
    over = arena.over(job)
    assert over.state is JobState.PUBLISHED
    assert over.deaths == 1
    assert over.results[0].repo_id == f"me/{job.id}"
    assert arena.marks("begin", job) == [*STEPS[:3], *STEPS[3:4], *STEPS[3:]]
    arena.wait(lambda: not arena.local_jobs(), "the disk to be freed")


def test_another_runner_goes_on_with_the_job_of_a_dead_one(arena):
    arena.command("measure", "die-once")
    job = arena.submit()
    arena.start("one").wait()
    arena.start("two")
    over = arena.over(job)
    assert (over.state, over.runner) == (JobState.PUBLISHED, "two")
    assert arena.marks_by("begin", job)[:4] == [
        ("one", "resolve"),
        ("one", "download"),
        ("one", "measure"),
        ("two", "measure"),
    ]


@pytest.mark.harden("other runners")
def test_a_thawed_runner_cannot_write_over_the_one_that_took_its_job(postgres_arena):
    arena = postgres_arena
    arena.command("publish", "freeze-once")
    job = arena.submit()
    frozen = arena.start("one", timing=PATIENT)
    arena.wait_for_mark("frozen", job, "publish")
    arena.start("two")
    over = arena.over(job)
    assert (over.state, over.runner) == (JobState.PUBLISHED, "two")
    frozen.send_signal(signal.SIGCONT)
    # It notices, frees its jobs and takes jobs again.
    arena.wait(lambda: not arena.local_jobs(), "the disk to be freed")
    arena.wait(lambda: all(each.is_alive for each in arena.board.runners()), "both runners")
    assert arena.board.get(job.id) == over
    assert arena.marks("published", job) == ["publish"]


@pytest.mark.harden("hostile models")
def test_a_model_that_kills_three_runners_fails_and_does_not_kill_a_fourth(sqlite_arena):
    arena = sqlite_arena
    arena.command("measure", "die")
    job = arena.submit()
    for _ in range(3):
        arena.start().wait()
    other = arena.submit("org/Harmless")
    arena.command("measure", "sleep 0", model="org/Harmless")
    arena.start()
    over = arena.over(job)
    assert (over.state, over.reason_code) == (JobState.FAILED, "killed_runners")
    assert (
        "3 runners died while converting this model: it needs probably more than" in over.sentence
    )
    assert arena.over(other).state is JobState.PUBLISHED
    assert arena.marks("begin", job).count("measure") == 3


@pytest.mark.harden("other runners")
def test_a_second_runner_of_the_same_name_is_refused(sqlite_arena):
    arena = sqlite_arena
    arena.command("measure", "sleep 3600")
    job = arena.submit()
    first = arena.start("mac")
    arena.wait_for_mark("begin", job, "measure")
    second = arena.start("mac", timing=PATIENT)
    assert second.wait() == 1
    assert "Another runner named 'mac' is running." in arena.logs()
    assert first.poll() is None
    arena.command("measure", None)
    assert arena.board.get(job.id).state is JobState.RUNNING


def test_a_thawed_runner_whose_name_was_taken_over_ends_and_says_why(postgres_arena):
    arena = postgres_arena
    arena.command("encode", "freeze-once")
    job = arena.submit()
    frozen = arena.start("mac", timing=PATIENT)
    arena.wait_for_mark("frozen", job, "encode")
    arena.start("mac")
    over = arena.over(job)
    assert (over.state, over.deaths) == (JobState.PUBLISHED, 1)
    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait() == 1
    assert "Another runner named 'mac' is running." in arena.logs()
    assert arena.marks("published", job) == ["publish"]


def test_a_runner_that_is_asked_to_stop_gives_its_job_back(sqlite_arena):
    arena = sqlite_arena
    arena.command("measure", "sleep 3600")
    job = arena.submit()
    runner = arena.start("one")
    arena.wait_for_mark("begin", job, "measure")
    runner.send_signal(signal.SIGTERM)
    assert runner.wait() == 0
    waiting = arena.board.get(job.id)
    assert (waiting.state, waiting.deaths, waiting.position) == (JobState.WAITING, 0, 1)
    arena.command("measure", None)
    arena.start("two")
    assert arena.over(job).state is JobState.PUBLISHED
    assert arena.marks("end", job) == list(STEPS)


def test_a_stopped_database_that_comes_back_loses_nothing(postgres_arena, postgres):
    arena = postgres_arena
    arena.command("measure", "sleep 2")
    job = arena.submit()
    arena.start()
    arena.wait_for_mark("begin", job, "measure")
    postgres.stop()
    arena.wait_for_mark("end", job, "measure")  # and nothing can be written down
    postgres.start()
    over = arena.over(job)
    assert (over.state, over.deaths) == (JobState.PUBLISHED, 0)
    assert arena.marks("end", job) == list(STEPS)


@pytest.mark.parametrize("moment", ["publish", "after-publish"])
def test_what_was_published_when_the_runner_died_is_not_published_again(sqlite_arena, moment):
    arena = sqlite_arena
    arena.command(moment, "die-once")
    job = arena.submit()
    arena.start().wait()
    arena.start()
    assert arena.over(job).state is JobState.PUBLISHED
    assert arena.marks("published", job) == ["publish"]


def test_what_ended_long_ago_is_forgotten_and_can_be_retried_from_the_start(arena):
    runner = arena.start()
    arena.command("evaluate", "fail never")
    old, recent = arena.submit("org/Old"), arena.submit("org/Recent")
    assert {arena.over(job).state for job in (old, recent)} == {JobState.FAILED}
    runner.terminate()
    runner.wait()
    schema = "" if arena.url.startswith("sqlite") else "dbos."
    with closing(Database(arena.url)) as database:

        def forgotten() -> list[str]:
            """Jobs without a step that was written down."""
            query = sa.text(f"SELECT DISTINCT workflow_uuid FROM {schema}operation_outputs")
            with database.reading() as connection:
                kept = set(connection.execute(query).scalars())
            return [job.id for job in (old, recent) if f"{job.id}-1" not in kept]

        assert forgotten() == []
        with database.writing() as connection:
            aging = f"UPDATE {schema}workflow_status SET completed_at = 1 WHERE workflow_uuid = :id"
            connection.execute(sa.text(aging), {"id": f"{old.id}-1"})
        arena.command("evaluate", None)
        arena.start()
        arena.wait(lambda: bool(forgotten()), "the old attempt to be forgotten")
        assert forgotten() == [old.id]
    for job, num_measured in ((old, 2), (recent, 1)):
        arena.board.retry(job.id)
        assert arena.over(job).state is JobState.PUBLISHED
        assert arena.marks("end", job).count("measure") == num_measured


def test_a_runner_killed_while_it_waits_for_work_starts_again(sqlite_arena):
    arena = sqlite_arena
    runner = arena.start()
    arena.wait(lambda: any(each.is_alive for each in arena.board.runners()), "the runner")
    kill(runner)
    arena.start()
    assert arena.over(arena.submit()).state is JobState.PUBLISHED
