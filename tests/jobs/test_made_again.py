"""A published model that was deleted is made again on request, and never by the watcher."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from dynquant.convert import STEPS
from dynquant.errors import RetryLaterError
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.database import Database
from dynquant.jobs.job import Job, JobState, Outcome, PublishedRepo
from dynquant.jobs.request import Priority
from dynquant.jobs.store import JobStore
from tests.fakes import FakeRepos
from tests.jobs.arena import make_request

REPO = PublishedRepo(repo_id="me/Model-MLX-4.5bpw", commit_sha="c0ffee")


@pytest.fixture
def repos() -> FakeRepos:
    return FakeRepos()


@pytest.fixture
def board(database_url, repos) -> Iterator[DatabaseBoard]:
    with closing(DatabaseBoard(database_url, daily_limit=3, published=repos)) as board:
        yield board


@pytest.fixture
def store(database_url) -> Iterator[JobStore]:
    with closing(Database(database_url)) as database:
        yield JobStore(database)


def ask(board: DatabaseBoard, **overrides: Any) -> Job:
    return board.submit(
        make_request(**overrides), revision_sha="5ha", source_is_private=False, recipe_version=1
    )


def end(store: JobStore, job: Job, state: JobState = JobState.PUBLISHED) -> None:
    """A runner takes the job and ends it."""
    assert store.take(job.id, runner="mac", session="s") is not None
    results = (REPO,) if state is JobState.PUBLISHED else ()
    assert store.end(job.id, Outcome(state=state, results=results), session="s", busy_secs=9.0)


def test_what_is_still_there_is_the_same_job(board, store, repos):
    job = ask(board)
    end(store, job)
    assert (ask(board).state, ask(board).attempt) == (JobState.PUBLISHED, 1)


def test_what_was_deleted_is_another_attempt_of_who_asks_now(board, store, repos):
    job = ask(board, notify_url="https://a.example/x")
    end(store, job)
    repos.deleted.add(REPO.repo_id)
    again = ask(board, requester="bob", notify_url="https://b.example/x")
    assert (again.id, again.attempt, again.state) == (job.id, 2, JobState.WAITING)
    assert (again.request.requester, again.position) == ("bob", 1)
    assert again.request.notify_url == "https://b.example/x"
    assert [each.state for each in again.history] == [JobState.PUBLISHED]
    assert [each.id for each in board.list(requester="bob")] == [job.id]
    assert "no longer has what was published" in board.log(job.id)[-1].sentence
    end(store, again)
    assert board.get(job.id).results == (REPO,)


def test_a_hub_that_does_not_answer_makes_no_difference(board, store, repos):
    job = ask(board)
    end(store, job)
    repos.is_down = True
    assert (ask(board).state, ask(board).attempt) == (JobState.PUBLISHED, 1)


def test_the_watcher_makes_nothing_again_that_its_operator_deleted(board, store, repos):
    job = ask(board, requester="watcher", priority=Priority.WATCHER)
    end(store, job)
    repos.deleted.add(REPO.repo_id)
    swept = ask(board, requester="watcher", priority=Priority.WATCHER)
    assert (swept.state, repos.num_asked) == (JobState.PUBLISHED, 0)
    assert ask(board).attempt == 2


def test_twenty_who_ask_at_once_for_what_was_deleted_have_one_attempt(database_url, board, store):
    job = ask(board)
    end(store, job)
    gone = FakeRepos(deleted={REPO.repo_id})

    def again(number: int) -> int:
        with closing(DatabaseBoard(database_url, published=gone)) as own:
            return ask(own, requester=f"person-{number}").attempt

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(again, range(20))) == {2}
    assert len(board.get(job.id).history) == 1


@pytest.mark.harden("web")
def test_a_stranger_who_has_it_made_again_and_again_is_the_one_who_is_limited(
    board, store, repos, harden
):
    job = ask(board)
    repos.deleted.add(REPO.repo_id)
    end(store, job)
    for _ in range(3):
        end(store, ask(board, requester="eve"))
    with pytest.raises(RetryLaterError, match="You have asked for 3 models"):
        ask(board, requester="eve")
    assert board.get(job.id).state is JobState.PUBLISHED
    assert ask(board).attempt == 5  # one request of Ann counts
    harden("refused")


@pytest.mark.harden("web")
def test_a_stranger_who_tries_a_failed_job_again_uses_up_no_limit_but_their_own(
    board, store, harden
):
    job = ask(board)
    for _ in range(3):
        end(store, board.get(job.id), JobState.FAILED)
        board.retry(job.id, request=make_request(requester="eve"))
    end(store, job, JobState.FAILED)
    with pytest.raises(RetryLaterError):
        board.retry(job.id, request=make_request(requester="eve"))
    assert board.retry(job.id, request=make_request()).request.requester == "ann"
    assert ask(board, model="org/Other").request.requester == "ann"
    harden("refused")


def test_an_attempt_after_a_deletion_does_every_step_again(sqlite_arena):
    arena = sqlite_arena
    arena.start()
    job = arena.submit()
    first = arena.over(job)
    gone = FakeRepos(deleted={first.results[0].repo_id})
    with closing(DatabaseBoard(arena.url, published=gone)) as board:
        assert ask(board).id == job.id
    arena.wait(lambda: arena.marks("begin", job).count("publish") == 2, "another publishing")
    second = arena.over(job)
    assert (second.state, second.attempt) == (JobState.PUBLISHED, 2)
    assert arena.marks("begin", job) == [*STEPS, *STEPS]
