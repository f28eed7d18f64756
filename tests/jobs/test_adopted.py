"""A job of a visitor for which this machine asks too then belongs to this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.job import Job, JobState
from dynquant.jobs.request import Priority
from dynquant.model.naming import WATCHER, local_name
from tests.jobs.arena import make_request

pytestmark = pytest.mark.harden("inbox")


@pytest.fixture
def board(database_url) -> Iterator[DatabaseBoard]:
    with closing(DatabaseBoard(database_url)) as board:
        yield board


def ask(board: DatabaseBoard, requester: str, **overrides: Any) -> Job:
    return board.submit(
        make_request(requester=requester, **overrides),
        revision_sha="5ha",
        source_is_private=False,
        recipe_version=1,
    )


@pytest.mark.parametrize("ours", [WATCHER, local_name("operator")])
def test_who_asks_before_the_operator_does_cannot_cancel_it_afterwards(board, ours):
    first = ask(board, "eve", requester_id="id0eve")
    second = ask(board, ours, priority=Priority.WATCHER)
    assert second.id == first.id
    request = board.get(first.id).request
    assert (request.requester, request.requester_id) == (ours, "")
    assert request.priority is Priority.PERSON  # it keeps its place in the line
    assert [job.id for job in board.list(requester=ours)] == [first.id]
    assert ask(board, "eve").request.requester == ours


@pytest.mark.parametrize("ours", [WATCHER, local_name("operator")])
def test_what_a_stranger_asked_for_and_cancelled_is_another_attempt(board, ours):
    job = ask(board, "eve")
    board.cancel(job.id)
    again = ask(board, ours)
    assert (again.id, again.state, again.attempt) == (job.id, JobState.WAITING, 2)
    assert again.request.requester == ours


def test_what_the_operator_cancelled_stays_cancelled_for_the_watcher(board):
    job = ask(board, local_name("operator"))
    board.cancel(job.id)
    assert ask(board, WATCHER).state is JobState.CANCELLED


def test_targets_that_one_name_tells_are_one_job(board):
    ids = {ask(board, "eve", targets_bpw=(each,)).id for each in (4.5, 4.50001, 4.500049)}
    assert len(ids) == 1
    assert ask(board, "eve", targets_bpw=(4.49996,)).request.targets_bpw == (4.4999,)
