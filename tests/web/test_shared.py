from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from dynquant.web.shared import Shared


class Clock:
    def __init__(self) -> None:
        self.secs = 0.0

    def __call__(self) -> float:
        return self.secs


def test_many_who_ask_at_once_cost_one_answer():
    shared: Shared[str, int] = Shared(fresh_secs=60)
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
    shared: Shared[str, str] = Shared(fresh_secs=2, clock=clock)
    assert shared("a", lambda: "old") == "old"
    clock.secs = 1.9
    assert shared("a", lambda: "new") == "old"
    assert shared.is_fresh("a")
    clock.secs = 2.0
    assert not shared.is_fresh("a")
    assert shared("a", lambda: "new") == "new"
    shared.forget("a")
    assert shared("a", lambda: "newest") == "newest"


def test_an_error_is_not_kept():
    shared: Shared[str, str] = Shared(fresh_secs=60)
    with pytest.raises(ZeroDivisionError):
        shared("a", lambda: str(1 / 0))
    assert shared.known("a") is None
    assert shared("a", lambda: "fine") == "fine"
    assert shared.known("a") == "fine"


def test_only_so_many_answers_are_kept():
    shared: Shared[int, int] = Shared(fresh_secs=60, max_keys=3)
    for key in range(10):
        shared(key, int)
    assert [key for key in range(10) if shared.known(key) is not None] == [7, 8, 9]
