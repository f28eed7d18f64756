from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dynquant.errors import InvalidOptionError
from dynquant.watch.records import SweepReport
from dynquant.watch.schedule import ScheduledSweeps, is_due, parse_cron
from dynquant.watch.state import DatabaseWatchState

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Sweeper:
    """Sweeps that only note that they were done."""

    def __init__(self) -> None:
        self.times: list[datetime] = []
        self.meanwhile: Callable[[], Any] = lambda: None

    def sweep(self, now: datetime, may_go_on: Callable[[], bool]) -> SweepReport:
        self.times.append(now)
        assert may_go_on()
        self.meanwhile()
        return SweepReport(started_at=now, secs=0, sentence="" if may_go_on() else "Stopped.")


@pytest.fixture
def url(tmp_path) -> str:
    return f"sqlite:///{tmp_path / 'jobs.sqlite'}"


@pytest.fixture
def state(url):
    state = DatabaseWatchState(url)
    yield state
    state.close()


@pytest.mark.parametrize(
    ("cron", "minutes", "expected"),
    [
        ("*/15 * * * *", 14, False),
        ("*/15 * * * *", 15, True),
        ("0 3 * * *", 14 * 60, False),
        ("0 3 * * *", 15 * 60, True),
        ("*/15 * * * *", -5, True),
    ],
)
def test_it_is_time_once_a_time_of_the_schedule_has_passed(cron, minutes, expected):
    assert is_due(cron, NOON, NOON + timedelta(minutes=minutes)) is expected


def test_the_first_sweep_is_due_at_once():
    assert is_due("0 3 * * *", None, NOON)


@pytest.mark.parametrize("text", ["", "often", "* * * *", "* * * * * *", "61 * * * *", "@daily"])
def test_what_is_no_schedule_is_refused(text):
    with pytest.raises(InvalidOptionError, match="five fields of cron"):
        parse_cron(text)


def test_of_many_runners_one_sweeps_and_no_more_until_the_next_time(state, url):
    sweeper, other = Sweeper(), DatabaseWatchState(url)
    one = ScheduledSweeps(state, cron="0 3 * * *", sweep=sweeper.sweep)
    two = ScheduledSweeps(other, cron="0 3 * * *", sweep=sweeper.sweep)
    during: list[object] = []
    sweeper.meanwhile = lambda: during.append(two.do_round())
    assert one.do_round() is not None
    assert during == [None]
    assert one.do_round() is two.do_round() is None
    assert len(sweeper.times) == 1
    other.close()


def test_a_sweep_that_fails_is_tried_again_at_the_next_time_and_not_at_once(state):
    sweeper = Sweeper()

    def fail() -> None:
        raise InvalidOptionError("The rules make no sense.")

    sweeper.meanwhile = fail
    sweeps = ScheduledSweeps(state, cron="0 3 * * *", sweep=sweeper.sweep)
    with pytest.raises(InvalidOptionError):
        sweeps.do_round()
    assert sweeps.do_round() is None


def test_the_sweep_of_a_runner_that_died_goes_to_another_at_once(state, url):
    other = DatabaseWatchState(url)
    assert other.begin("dead", lease_secs=-1, is_due=lambda *_: True) is not None
    other.close()
    sweeper = Sweeper()
    assert ScheduledSweeps(state, cron="0 3 * * *", sweep=sweeper.sweep).do_round() is not None


def test_a_runner_that_stops_stops_its_sweep_and_begins_no_other(state):
    sweeper = Sweeper()
    sweeps = ScheduledSweeps(state, cron="* * * * *", sweep=sweeper.sweep)
    sweeper.meanwhile = sweeps.stop
    report = sweeps.do_now()
    assert report is not None
    assert report.sentence == "Stopped."
    assert sweeps.do_now() is None
    assert not state.is_sweeping


def test_a_pause_stops_a_sweep_and_keeps_the_next_from_beginning(state):
    sweeper = Sweeper()
    sweeper.meanwhile = lambda: state.set_paused(True)
    sweeps = ScheduledSweeps(state, cron="* * * * *", sweep=sweeper.sweep)
    report = sweeps.do_round()
    assert report is not None
    assert report.sentence == "Stopped."
    assert sweeps.do_round() is None
