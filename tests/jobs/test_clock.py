"""A clock that jumps, forward or back, loses no job and changes no turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from dynquant.errors import RetryLaterError
from dynquant.jobs import journal
from dynquant.jobs.database import Database
from dynquant.jobs.job import JobState, Outcome
from dynquant.jobs.registry import Registry, Watch
from dynquant.jobs.store import JobStore
from dynquant.jobs.waiting_line import typical_secs, waiting_line
from tests.jobs.arena import make_request

pytestmark = pytest.mark.harden("faults")

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
JUMPS = [timedelta(days=-400), timedelta(hours=-3), timedelta(hours=3), timedelta(days=9000)]


class JumpingDatabase(Database):
    """A database whose clock a test sets."""

    at = NOON

    def now(self, connection: sa.Connection) -> datetime:
        return self.at


@pytest.fixture
def database(database_url) -> Iterator[JumpingDatabase]:
    with closing(JumpingDatabase(database_url)) as database:
        yield database


def submit(store: JobStore, model: str, *, daily_limit: int | None = None, **overrides):
    request = make_request(model, revision="5ha", **overrides)
    return store.submit(
        request, recipe_version=1, needed_memory_bytes=None, daily_limit=daily_limit
    )


@pytest.mark.parametrize("jump", JUMPS)
def test_jobs_keep_their_turns_and_end_whatever_the_clock_does(database, jump):
    store = JobStore(database)
    first = submit(store, "org/First")
    database.at = NOON + jump
    second = submit(store, "org/Second")
    assert [waiting.id for waiting in waiting_line(database)] == [first.id, second.id]
    assert store.take(first.id, runner="mac", session="s")
    database.at = NOON
    assert store.begin_step(first.id, "measure", session="s")
    assert store.end(first.id, Outcome(state=JobState.PUBLISHED), session="s", busy_secs=60.0)
    assert store.get(first.id).state == JobState.PUBLISHED
    assert typical_secs(database) == 60.0
    log = [event.kind for event in journal.events(database, first.id, after=0)]
    assert log == ["submitted", "taken", "step", "published"]


@pytest.mark.parametrize("jump", JUMPS)
def test_a_runner_that_beats_is_alive_and_one_that_does_not_is_dead_at_every_hour(database, jump):
    registry = Registry(database)
    watch = Watch(num_looks=3)
    alive, silent = (
        registry.join(name, memory_bytes=1, num_slots=1, heartbeat_secs=0.01)
        for name in ("alive", "silent")
    )
    for number in range(5):
        database.at = NOON + number * jump
        registry.beat(alive)
        dead = {session.nonce for session in watch.dead(registry.sessions())}
    assert dead == {silent}


def test_a_clock_that_was_ahead_shuts_nobody_out(database):
    store = JobStore(database)
    database.at = NOON + timedelta(days=9000)
    submit(store, "org/First", daily_limit=1)
    database.at = NOON
    submit(store, "org/Second", daily_limit=1)
    with pytest.raises(RetryLaterError, match="within 24 hours"):
        submit(store, "org/Third", daily_limit=1)
