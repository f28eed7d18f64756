from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dynquant.errors import HubUnavailableError, InfeasibleTargetError
from dynquant.web.single_flight import SingleFlightCache


class Clock:
    def __init__(self) -> None:
        self.secs = 0.0

    def __call__(self) -> float:
        return self.secs


def test_many_who_ask_at_once_cost_one_answer():
    shared: SingleFlightCache[str, int] = SingleFlightCache(fresh_secs=60, clock=Clock())
    asked: list[str] = []
    together = threading.Barrier(20)

    def ask() -> int:
        asked.append("board")
        return len(asked)

    def want(_: int) -> int:
        together.wait()
        return shared("board", ask)

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(want, range(20))) == {1}
    assert len(asked) == 1


def test_an_answer_is_good_for_a_while_and_then_asked_for_again():
    clock = Clock()
    shared: SingleFlightCache[str, str] = SingleFlightCache(fresh_secs=2, clock=clock)
    assert shared("a", lambda: "old") == "old"
    clock.secs = 1.9
    assert shared("a", lambda: "new") == "old"
    assert shared.is_fresh("a")
    clock.secs = 2.0
    assert not shared.is_fresh("a")
    assert shared("a", lambda: "new") == "new"
    shared.forget("a")
    assert shared("a", lambda: "newest") == "newest"


def test_who_waits_for_what_fails_waits_once():
    shared: SingleFlightCache[str, str] = SingleFlightCache(fresh_secs=60, clock=Clock())
    asked: list[str] = []
    together = threading.Barrier(10)

    def fail() -> str:
        asked.append("board")
        raise InfeasibleTargetError("Away.", min_bpw=2.0, max_bpw=16.0)

    def want(_: int) -> tuple[str, float]:
        together.wait()
        with pytest.raises(InfeasibleTargetError) as found:
            shared("board", fail)
        return str(found.value), found.value.min_bpw

    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(want, range(10))) == {("Away.", 2.0)}
    assert asked == ["board"]


def test_a_failure_is_kept_for_two_seconds_and_without_what_led_to_it():
    clock = Clock()
    shared: SingleFlightCache[str, str] = SingleFlightCache(fresh_secs=60, clock=clock)

    def fail() -> str:
        try:
            return str(int("Bearer hf_canary"))
        except ValueError as cause:
            raise HubUnavailableError("Away.") from cause

    assert shared("a", lambda: "old") == "old"
    clock.secs = 60.0
    with pytest.raises(HubUnavailableError):
        shared("a", fail)
    clock.secs = 61.9
    with pytest.raises(HubUnavailableError) as found:
        shared("a", lambda: "new")
    assert found.value.__cause__ is found.value.__context__ is None
    assert found.value.reason == "hub_unavailable"
    assert shared.known("a") == "old"
    clock.secs = 62.0
    assert shared("a", lambda: "new") == "new"


def test_an_error_that_is_a_bug_is_not_kept():
    shared: SingleFlightCache[str, str] = SingleFlightCache(fresh_secs=60)
    with pytest.raises(ZeroDivisionError):
        shared("a", lambda: str(1 / 0))
    assert shared.known("a") is None
    assert shared("a", lambda: "fine") == "fine"
    assert shared.known("a") == "fine"


def test_only_so_many_answers_are_kept():
    shared: SingleFlightCache[int, int] = SingleFlightCache(fresh_secs=60, max_keys=3)
    for key in range(10):
        shared(key, int)
    assert [key for key in range(10) if shared.known(key) is not None] == [7, 8, 9]
