"""Jobs on one runner, which runs for the whole file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from dynquant.convert import STEPS
from dynquant.jobs import tables
from dynquant.jobs.database import Database
from dynquant.jobs.job import JobState
from dynquant.jobs.registry import Registry
from dynquant.jobs.store import JobStore
from tests.jobs.arena import PATIENT, Arena
from tests.jobs.conftest import opened


@pytest.fixture(scope="module")
def arena(tmp_path_factory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("engine")
    url = f"sqlite:///{folder / 'jobs.sqlite'}"
    with opened(Arena(folder / "arena", url, PATIENT)) as arena:
        arena.start(concurrency=3)
        arena.wait(lambda: any(each.is_alive for each in arena.board.runners()), "the runner")
        yield arena


def test_a_job_goes_through_every_step_once_and_says_what_it_published(arena):
    job = arena.submit("org/Plain")
    over = arena.over(job)
    assert over.state is JobState.PUBLISHED
    assert [(each.repo_id, each.commit_sha) for each in over.results] == [
        (f"me/{job.id}", "c0ffee")
    ]
    assert arena.marks("end", job) == list(STEPS)
    kinds = [event.kind for event in arena.board.log(job.id)]
    assert kinds == ["submitted", "taken", *["step"] * len(STEPS), "published"]
    arena.wait(lambda: job.id not in arena.local_jobs(), "the disk to be freed")


def test_the_same_request_is_the_same_job_whoever_asks_and_however_often(arena):
    job = arena.submit("org/Twice", targets_bpw=(4.5, 3.0))
    again = arena.submit("org/Twice", targets_bpw=(3.0, 4.5, 3.0), requester="bob")
    assert again.id == job.id
    arena.over(job)
    assert arena.submit("org/Twice", targets_bpw=(4.5, 3.0)).state is JobState.PUBLISHED
    assert arena.marks("published", job) == ["publish"]


def test_a_running_job_shows_its_step_and_how_far_that_is(arena):
    arena.command("measure", "sleep 3600", model="org/Slow")
    job = arena.submit("org/Slow")

    def is_shown() -> bool:
        progress = arena.board.get(job.id).progress
        return progress is not None and (progress.step, progress.fraction) == ("measure", 0.5)

    arena.wait(is_shown, "the progress")
    shown = arena.board.get(job.id)
    assert shown.state is JobState.RUNNING
    assert (shown.eta_secs, shown.runner) == (7.0, "one")
    assert shown.progress is not None
    assert shown.progress.layer == "model.layers.0"
    arena.board.cancel(job.id)


def test_a_cancelled_job_stops_in_its_step_and_frees_the_disk(arena):
    arena.command("encode", "sleep 3600", model="org/Unwanted")
    job = arena.submit("org/Unwanted")
    arena.wait_for_mark("begin", job, "encode")
    assert arena.board.cancel(job.id).state is JobState.CANCELLED
    arena.wait(lambda: job.id not in arena.local_jobs(), "the disk to be freed")
    assert arena.marks("stopped", job) == ["encode"]


def test_a_retried_job_keeps_what_was_done_and_what_happened(arena):
    arena.command("encode", "fail never", model="org/Unlucky")
    job = arena.submit("org/Unlucky")
    failed = arena.over(job)
    assert (failed.state, failed.reason_code) == (JobState.FAILED, "verification_failed")
    arena.command("encode", None, model="org/Unlucky")
    retried = arena.board.retry(job.id)
    assert (retried.attempt, retried.id) == (2, job.id)
    over = arena.over(job)
    assert over.state is JobState.PUBLISHED
    assert arena.marks("begin", job) == [*STEPS[:3], "encode", "encode", *STEPS[4:]]
    (earlier,) = over.history
    assert (earlier.number, earlier.state, earlier.step) == (1, JobState.FAILED, "encode")
    assert earlier.sentence == failed.sentence


def test_a_cancelled_job_can_be_retried(arena):
    arena.command("measure", "sleep 3600", model="org/Wavering")
    job = arena.submit("org/Wavering")
    arena.wait_for_mark("begin", job, "measure")
    arena.board.cancel(job.id)
    arena.command("measure", None, model="org/Wavering")
    arena.board.retry(job.id)
    over = arena.over(job)
    assert over.state is JobState.PUBLISHED
    assert [each.state for each in over.history] == [JobState.CANCELLED]
    assert arena.marks("begin", job) == [*STEPS[:3], *STEPS[2:]]


@pytest.mark.parametrize(
    ("error", "state", "reason", "words"),
    [
        ("refused", JobState.REFUSED, "unsupported_model", "Choose another."),
        ("never", JobState.FAILED, "verification_failed", "Nothing was published."),
        ("later", JobState.FAILED, "hub_unavailable", "Retry the job once it has."),
        ("bug", JobState.FAILED, "internal", "Retry the job, and report it"),
    ],
)
def test_an_error_ends_the_job_as_its_kind_says(arena, error, state, reason, words):
    model = f"org/Ends-{error}"
    arena.command("download", f"fail {error}", model=model)
    over = arena.over(arena.submit(model))
    assert (over.state, over.reason_code) == (state, reason)
    assert words in over.sentence
    assert "/home" not in over.sentence
    assert "secret.py" in arena.logs() or error != "bug"  # the runner's log has the traceback


def test_what_may_work_later_is_tried_until_it_does(arena):
    arena.command("download", "fail later", model="org/Patient")
    job = arena.submit("org/Patient")
    arena.wait(lambda: arena.marks("begin", job).count("download") >= 3, "three tries")
    arena.command("download", None, model="org/Patient")
    assert arena.over(job).state is JobState.PUBLISHED


def test_a_job_that_needs_more_memory_waits_for_a_runner_that_has_it_and_says_so(arena):
    arena.command("resolve", "need 64", model="org/Huge")
    job = arena.submit("org/Huge")

    def says_so() -> bool:
        shown = arena.board.get(job.id)
        return shown.state is JobState.WAITING and "64 GB of memory" in shown.sentence

    arena.wait(says_so, "the job to say what it waits for")
    assert arena.board.get(job.id).needed_memory_bytes == 64 * 10**9
    big = arena.start("big", memory_gb=96)
    over = arena.over(job)
    assert (over.state, over.runner, over.deaths) == (JobState.PUBLISHED, "big", 0)
    assert arena.marks_by("begin", job)[:2] == [("one", "resolve"), ("big", "resolve")]
    big.terminate()
    assert big.wait() == 0


def test_a_job_that_its_runner_does_not_know_of_is_queued_again(arena):
    # As when the database stops answering after the job was taken, before the runner hears so.
    database = Database(arena.url)
    try:
        job = arena.submit("org/Forgotten", needed_memory_bytes=96 * 10**9)
        sessions = Registry(database).sessions()
        assert len(sessions) == 1
        assert JobStore(database).take(job.id, runner="one", session=sessions[0].nonce)
    finally:
        database.close()
    arena.wait(lambda: arena.board.get(job.id).state is JobState.WAITING, "the job to wait")
    assert arena.board.get(job.id).deaths == 0
    arena.board.cancel(job.id)


def test_an_entry_that_cannot_be_read_is_quarantined_and_the_queue_goes_on(arena):
    database = Database(arena.url)
    try:
        with database.writing() as connection:
            connection.execute(
                sa.insert(tables.jobs).values(
                    id="poison",
                    state="waiting",
                    requester="nobody",
                    priority=0,
                    submission=0,
                    has_begun=True,
                    served=0,
                    document='{"id": "poison"',
                )
            )
    finally:
        database.close()
    assert arena.over(arena.submit("org/After-poison")).state is JobState.PUBLISHED
    (entry,) = arena.board.quarantined()
    assert entry.job_id == "poison"
    assert "not a job of this version" in entry.sentence
    assert "poison" not in [job.id for job in arena.board.list()]
