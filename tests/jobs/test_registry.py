"""Whether a runner is alive is decided by counters, never by clocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dynquant.errors import InvalidOptionError
from dynquant.jobs.database import Database
from dynquant.jobs.registry import Registry, Session, Watch


@pytest.fixture
def registry(database_url) -> Iterator[Registry]:
    database = Database(database_url)
    yield Registry(database)
    database.close()


def join(registry: Registry, runner_id: str = "mac", **overrides: Any) -> str:
    fields: dict[str, Any] = {
        "memory_bytes": 1,
        "num_slots": 1,
        "heartbeat_secs": 2.0,
        "sleep": lambda secs: None,
    }
    return registry.join(runner_id, **fields | overrides)


def make_session(nonce: str, beat: int) -> Session:
    return Session(nonce=nonce, beat=beat)


def test_a_name_whose_process_lives_is_refused(registry):
    nonce = join(registry)
    with pytest.raises(InvalidOptionError, match="Another runner named 'mac' is running"):
        join(registry, sleep=lambda secs: registry.beat(nonce))
    assert registry.beat(nonce)


def test_a_name_whose_process_is_dead_is_taken_over_and_the_dead_one_knows(registry):
    waits: list[float] = []
    before = join(registry)
    after = join(registry, sleep=waits.append)
    assert waits == [2.0] * 3
    assert registry.beat(after)
    assert not registry.beat(before)


def test_a_name_that_was_left_is_free_at_once(registry):
    registry.leave(join(registry))
    assert registry.sessions() == ()
    join(registry, sleep=lambda secs: pytest.fail("there is nobody to wait for"))


def test_of_two_that_take_over_a_name_one_is_refused(registry):
    join(registry)

    def other_is_faster(secs: float) -> None:
        if len(registry.sessions()) == 1 and not faster:
            faster.append(join(registry))

    faster: list[str] = []
    with pytest.raises(InvalidOptionError):
        join(registry, sleep=other_is_faster)
    assert registry.beat(faster[0])


def test_runners_are_shown_with_what_they_can_do(registry):
    nonce = join(registry, "studio", memory_bytes=96 * 10**9, num_slots=2)
    registry.leave(join(registry, "mac"))
    mac, studio = registry.statuses(num_running={nonce: 1}, dead_after_secs=30.0)
    assert (mac.id, mac.is_alive) == ("mac", False)
    assert (studio.id, studio.is_alive, studio.num_slots, studio.num_running) == (
        "studio",
        True,
        2,
        1,
    )
    assert 0 <= studio.silent_secs < 30
    assert registry.memory_bytes("studio") == 96 * 10**9
    assert registry.memory_bytes("nobody") == 0


def test_a_session_is_dead_after_so_many_looks_without_a_beat():
    watch = Watch(num_looks=3)
    looks = [watch.dead((make_session("a", 7),)) for _ in range(4)]
    assert [len(dead) for dead in looks] == [0, 0, 0, 1]


def test_a_single_beat_in_time_keeps_a_session_alive():
    watch = Watch(num_looks=3)
    for beat in (1, 1, 1, 2, 2, 2, 3):
        assert watch.dead((make_session("a", beat),)) == ()


def test_a_session_that_is_gone_is_forgotten():
    watch = Watch(num_looks=2)
    session = make_session("a", 1)
    watch.dead((session,))
    watch.dead(())
    assert watch.dead((session,)) == ()


def test_a_runner_tells_the_others_what_it_is(registry):
    join(registry, "mac-studio", memory_bytes=64 * 10**9, num_slots=2, chip="Apple M2 Ultra")
    (status,) = registry.statuses(num_running={}, dead_after_secs=60)
    assert (status.id, status.chip, status.memory_bytes) == (
        "mac-studio",
        "Apple M2 Ultra",
        64 * 10**9,
    )
    assert (status.num_slots, status.num_running, status.is_alive) == (2, 0, True)
