from __future__ import annotations

import pytest

from dynquant.quant.time_budget import TimeBudget


class Clock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.minutes = 1000.0

    def __call__(self) -> float:
        return 60 * self.minutes


def minutes_taken(clock: Clock, budget: TimeBudget, *needed: int) -> list[int]:
    """How many rounds of a minute each part makes, of the number that it needs."""
    taken = []
    for wanted, may_go_on in zip(needed, budget.shares(len(needed)), strict=True):
        start = clock.minutes
        while may_go_on() and clock.minutes < start + wanted:
            clock.minutes += 1
        taken.append(int(clock.minutes - start))
    return taken


@pytest.mark.parametrize(
    ("minutes", "needed", "taken"),
    [
        (30, [99], [30]),
        (30, [99, 99, 99], [10, 10, 10]),
        (30, [99, 2, 99], [10, 2, 18]),
        (30, [1, 1, 1], [1, 1, 1]),
        (2.5, [99], [3]),  # a round that has begun goes on to its end
        (0, [99, 99], [0, 0]),
        (None, [99, 99], [99, 99]),
    ],
)
def test_parts_share_the_time_and_leave_unused_time_to_later_parts(minutes, needed, taken):
    clock = Clock()
    assert minutes_taken(clock, TimeBudget(minutes, clock), *needed) == taken


def test_a_part_that_takes_too_long_leaves_the_others_nothing():
    clock = Clock()
    shares = TimeBudget(10, clock).shares(2)
    assert next(shares)()
    clock.minutes += 11
    assert not next(shares)()


def test_the_budget_begins_with_the_first_part():
    clock = Clock()
    shares = TimeBudget(10, clock).shares(1)
    clock.minutes += 60
    may_go_on = next(shares)
    clock.minutes += 9
    assert may_go_on()
    clock.minutes += 1
    assert not may_go_on()
