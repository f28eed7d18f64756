"""The jobs in the database, without a runner."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import sqlalchemy as sa

from dynquant.errors import RequestError, RetryLaterError
from dynquant.jobs import journal, tables
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.database import Database
from dynquant.jobs.job import TERMINAL, JobState, Outcome, StepProgress
from dynquant.jobs.registry import Registry
from dynquant.jobs.request import Priority
from dynquant.jobs.store import JobStore
from dynquant.jobs.waiting_line import waiting_line
from tests.jobs.arena import make_request

PUBLISHED = Outcome(state=JobState.PUBLISHED)


@pytest.fixture
def database(database_url) -> Iterator[Database]:
    database = Database(database_url)
    yield database
    database.close()


@pytest.fixture
def store(database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def board(database_url) -> Iterator[DatabaseBoard]:
    board = DatabaseBoard(database_url)
    yield board
    board.close()


def submit(board: DatabaseBoard, model: str = "org/Model", **overrides):
    return board.submit(
        make_request(model, **overrides),
        revision_sha="5ha",
        source_is_private=False,
        recipe_version=1,
    )


def run(store: JobStore, identity: str, *, secs: float = 60.0) -> None:
    """Have a runner take and publish a job."""
    assert store.take(identity, runner="mac", session="s")
    assert store.end(identity, PUBLISHED, session="s", busy_secs=secs)


def test_a_waiting_job_knows_its_place_and_what_it_waits_for(board):
    submit(board, "org/First")
    second = submit(board, "org/Second", requester="bob")
    assert (second.state, second.position) == (JobState.WAITING, 2)
    assert second.sentence == "It waits for a runner: none is running."
    assert second.request.revision == "5ha"


def test_the_expected_wait_follows_from_the_jobs_that_were_finished(board, store, database):
    Registry(database).join("mac", memory_bytes=10**9, num_slots=1, heartbeat_secs=0)
    for number, secs in enumerate((50.0, 60.0, 900.0)):
        run(store, submit(board, f"org/Done-{number}").id, secs=secs)
    running = submit(board, "org/Running")
    store.take(running.id, runner="mac", session=store_session(database))
    first, second = submit(board, "org/A"), submit(board, "org/B")
    assert (board.get(first.id).eta_secs, board.get(second.id).eta_secs) == (30.0, 90.0)
    assert board.get(first.id).sentence == ""


def store_session(database: Database) -> str:
    return Registry(database).sessions()[0].nonce


def test_twenty_simultaneous_submissions_make_one_job(database_url, board):
    def ask(_: int) -> str:
        with closing(DatabaseBoard(database_url)) as own:
            return submit(own).id

    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(ask, range(20)))
    assert len(set(found)) == 1
    assert len(board.list()) == 1
    assert [event.kind for event in board.log(found[0])] == ["submitted"]


def test_a_requester_over_the_daily_limit_is_told_when_to_come_back(database_url, board):
    limited = DatabaseBoard(database_url, daily_limit=2)
    try:
        job = submit(limited, "org/A")
        submit(limited, "org/B")
        with pytest.raises(RetryLaterError, match=r"asked for 2 models .* Ask again in 24 h"):
            submit(limited, "org/C")
        submit(limited, "org/C", requester="bob")
        submit(limited, "org/D", requester="watcher", priority=Priority.WATCHER)
        assert submit(limited, "org/A").id == job.id  # the job exists already
        limited.cancel(job.id)
        with pytest.raises(RetryLaterError):
            limited.retry(job.id)
        assert limited.get(job.id).state is JobState.CANCELLED
        submit(board, "org/C-unlimited")
    finally:
        limited.close()


def test_only_one_of_many_takers_gets_a_job(board, store):
    job = submit(board)
    taken = [store.take(job.id, runner=name, session=name) for name in "abc"]
    assert [each is not None for each in taken] == [True, False, False]
    assert store.held("a") == {job.id}


def test_what_a_session_writes_that_has_lost_the_job_is_dropped(board, store):
    job = submit(board)
    store.take(job.id, runner="a", session="old")
    assert store.reassign(job.id, session="old", to="reaper")
    store.requeue_or_fail(job.id, session="reaper", memory_bytes=1)
    store.take(job.id, runner="b", session="new")
    before = board.get(job.id)
    store.report(job.id, StepProgress(step="publish"), session="old")
    store.give_back(job.id, session="old", sentence="Late.")
    assert not store.begin_step(job.id, "publish", session="old")
    assert not store.end(job.id, PUBLISHED, session="old", busy_secs=1.0)
    assert store.requeue_or_fail(job.id, session="old", memory_bytes=1) is None
    assert board.get(job.id) == before


def test_the_mark_of_what_is_over_changes_with_every_attempt_that_ends(board):
    def mark() -> tuple[int, int]:
        return board.mark(TERMINAL)

    job = submit(board)
    marks = [mark()]
    for again in (board.cancel, board.retry, board.cancel):
        again(job.id)
        submit(board, f"org/Waits-{len(marks)}")
        marks.append(mark())
    assert marks[0] == marks[2] == (0, 0)
    assert len({*marks}) == 3


def test_a_waiting_job_is_cancelled_at_once(board, store, database):
    job = submit(board)
    assert board.cancel(job.id).state is JobState.CANCELLED
    assert waiting_line(database) == ()
    assert store.take(job.id, runner="a", session="a") is None


def test_what_is_over_cannot_be_cancelled_and_what_was_published_not_retried(board, store):
    job = submit(board)
    with pytest.raises(RequestError, match="refused, failed or was cancelled"):
        board.retry(job.id)
    run(store, job.id)
    with pytest.raises(RequestError, match="is over"):
        board.cancel(job.id)
    with pytest.raises(RequestError, match="refused, failed or was cancelled"):
        board.retry(job.id)


@pytest.mark.parametrize("what", ["get", "cancel", "retry"])
def test_a_job_that_is_not_there_is_named(board, what):
    with pytest.raises(RequestError, match="There is no job 'nothing'"):
        getattr(board, what)("nothing")


def test_a_retried_job_goes_to_the_end_of_the_requesters_line(board):
    first, second = submit(board, "org/A"), submit(board, "org/B")
    board.cancel(first.id)
    assert board.retry(first.id).position == 2
    assert board.get(second.id).position == 1


def test_jobs_are_listed_latest_first_and_by_state_and_requester(board):
    jobs = [submit(board, f"org/{n}", requester="ann" if n % 2 else "bob") for n in range(4)]
    board.cancel(jobs[3].id)
    assert [job.id for job in board.list()] == [job.id for job in reversed(jobs)]
    assert [job.id for job in board.list(limit=2)] == [jobs[3].id, jobs[2].id]
    assert [job.id for job in board.list(requester="ann")] == [jobs[3].id, jobs[1].id]
    assert [job.id for job in board.list(states=[JobState.CANCELLED])] == [jobs[3].id]


@pytest.mark.parametrize("read", ["get", "list", "take", "cancel", "submit"])
def test_an_entry_that_cannot_be_read_is_quarantined_by_its_first_reader(
    board, store, database, read
):
    job = submit(board)
    with database.writing() as connection:
        connection.execute(sa.update(tables.jobs).values(document="{}"))
    if read == "list":
        assert board.list() == ()
    elif read == "take":
        assert store.take(waiting_line(database)[0].id, runner="a", session="a") is None
    elif read == "submit":
        assert submit(board).state is JobState.WAITING
    else:
        with pytest.raises(RequestError, match="There is no job"):
            getattr(board, read)(job.id)
    (entry,) = board.quarantined()
    assert entry.job_id == job.id


def test_a_request_that_could_not_be_read_back_is_not_queued(board):
    with pytest.raises(RequestError, match="targets_bpw"):
        submit(board, targets_bpw=(float("nan"),))
    assert board.list() == ()


def test_a_log_is_read_on_from_where_it_was_left_and_forgets_its_beginning(
    board, database, monkeypatch
):
    job = submit(board)
    with database.writing() as connection:
        for number in range(5):
            journal.note(database, connection, job.id, "note", f"line {number}")
    events = board.log(job.id)
    assert [event.sentence for event in board.log(job.id, after=events[3].number)] == [
        "line 3",
        "line 4",
    ]
    monkeypatch.setattr(journal, "_MAX_EVENTS", 2)
    journal.trim(database)
    assert [event.sentence for event in board.log(job.id)] == ["line 3", "line 4"]
