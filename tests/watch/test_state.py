from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from dynquant.errors import InvalidOptionError
from dynquant.jobs.request import JobRequest, Priority
from dynquant.watch.records import Cursor, Order, PostponedModel, SeenModel, SweepReport
from dynquant.watch.skips import Skip
from dynquant.watch.state import DatabaseWatchState

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY_SECS = 86_400.0


@pytest.fixture
def state(database_url) -> Iterator[DatabaseWatchState]:
    state = DatabaseWatchState(database_url)
    yield state
    state.close()


def make_order(job_id: str = "j1", **overrides: Any) -> Order:
    request = JobRequest(
        model="org/m",
        revision="5ha",
        targets_bpw=(4.5, 6.0),
        destination="you",
        requester="watcher",
        priority=Priority.WATCHER,
    )
    fields: dict[str, Any] = {"rule": "a", "num_bytes": 10, "hours": 0.5, "request": request}
    return Order(job_id=job_id, **fields | overrides)


def make_seen(repo_id: str = "org/m", **overrides) -> SeenModel:
    return SeenModel(repo_id=repo_id, **{"sha": "s", "fingerprint": "f"} | overrides)


def always(_last: datetime | None, _now: datetime) -> bool:
    return True


def test_what_is_kept_is_there_for_another_process(state, database_url):
    assert state.cursor() is None
    cursor = Cursor(since=NOW - HOUR, created=NOW, modified=NOW + HOUR)
    state.save_cursor(cursor)
    state.remember(make_seen(skip=Skip.GATED))
    other = DatabaseWatchState(database_url)
    assert other.cursor() == cursor
    assert other.seen("org/m") == make_seen(skip=Skip.GATED)
    assert other.seen("org/n") is None
    other.remember(make_seen(sha="t", job_id="j"))
    assert state.seen("org/m") == make_seen(sha="t", job_id="j")
    other.close()


def test_models_come_up_again_when_they_are_due_the_longest_first(state):
    for number, name in enumerate(("b", "a", "c")):
        state.postpone(PostponedModel(repo_id=name, due=NOW + number * HOUR, since=NOW))
    assert [each.repo_id for each in state.due(NOW + HOUR, limit=9)] == ["b", "a"]
    assert [each.repo_id for each in state.due(NOW + 9 * HOUR, limit=1)] == ["b"]
    assert state.postponed("c") == PostponedModel(repo_id="c", due=NOW + 2 * HOUR, since=NOW)
    state.forget("b")
    state.remember(make_seen("a"))
    assert [each.repo_id for each in state.due(NOW + 9 * HOUR, limit=9)] == ["c"]


def test_an_order_is_there_until_the_queue_has_it_and_is_spent_once(state):
    state.postpone(PostponedModel(repo_id="org/m", due=NOW, since=NOW))
    for _ in range(2):
        state.order(make_order(), make_seen(job_id="j1"))
    state.order(make_order("j2", num_bytes=5), make_seen("org/n", job_id="j2"))
    state.order(make_order("j3", rule="b"), make_seen("org/o", job_id="j3"))
    assert state.unsubmitted()[0] == make_order()
    assert state.due(NOW, limit=9) == ()
    for job_id in ("j1", "j2", "j3"):
        state.submitted(job_id)
    assert state.unsubmitted() == ()
    assert state.spent("a", within_secs=DAY_SECS) == (15, 1.0)
    assert state.spent("a", within_secs=-1.0) == (0, 0.0)
    assert state.spent("none", within_secs=DAY_SECS) == (0, 0.0)


def test_one_at_a_time_has_the_turn(state):
    now = state.begin("one", lease_secs=60, is_due=always)
    assert now is not None
    assert state.begin("two", lease_secs=60, is_due=always) is None
    assert state.renew("one", lease_secs=60)
    assert not state.renew("two", lease_secs=60)
    state.end("two", began_at=now)
    assert state.begin("two", lease_secs=60, is_due=always) is None
    state.end("one", began_at=now)
    seen: list[datetime] = []

    def is_not_due(last: datetime | None, _now: datetime) -> bool:
        assert last is not None
        seen.append(last)
        return False

    assert state.begin("two", lease_secs=60, is_due=is_not_due) is None
    assert abs(seen[0] - now) < timedelta(milliseconds=1)
    assert state.begin("two", lease_secs=60, is_due=always) is not None


def test_the_turn_of_who_died_goes_to_another_which_he_notices(state):
    assert state.begin("one", lease_secs=-1, is_due=always) is not None
    began_at = state.begin("two", lease_secs=60, is_due=always)
    assert began_at is not None
    assert not state.renew("one", lease_secs=60)
    state.end("one", began_at=NOW)
    assert state.renew("two", lease_secs=60)


def test_nobody_gets_the_turn_during_a_pause_and_who_has_it_loses_it(state):
    assert state.begin("one", lease_secs=60, is_due=always) is not None
    assert not state.is_paused
    state.set_paused(True)
    assert state.is_paused
    assert not state.renew("one", lease_secs=60)
    assert state.begin("one", lease_secs=60, is_due=always) is None
    state.set_paused(False)
    assert state.begin("one", lease_secs=60, is_due=always) is not None


def test_reports_come_back_the_latest_first(state):
    reports = [
        SweepReport(
            started_at=NOW + number * HOUR,
            secs=1.5,
            num_seen=3,
            num_matched=1,
            queued=("org/m",),
            skipped={Skip.QUANT: 2},
            num_calls=7,
            sentence="",
        )
        for number in range(3)
    ]
    for report in reports:
        state.add_report(report)
    assert state.reports(limit=2) == (reports[2], reports[1])


def test_only_the_newest_memories_are_kept(state, monkeypatch):
    monkeypatch.setattr("dynquant.watch.state._MAX_SEEN", 2)
    monkeypatch.setattr("dynquant.watch.state._MAX_POSTPONED", 2)
    monkeypatch.setattr("dynquant.watch.state._MAX_REPORTS", 2)
    for name in ("a", "b", "c", "d"):
        state.remember(make_seen(name))
        state.postpone(PostponedModel(repo_id=f"later-{name}", due=NOW, since=NOW))
        state.add_report(SweepReport(started_at=NOW, secs=0))
    assert [name for name in "abcd" if state.seen(name)] == ["c", "d"]
    assert len(state.due(NOW, limit=9)) == 2
    assert len(state.reports(limit=9)) == 2


def test_tables_of_the_first_version_get_what_they_lack_and_keep_what_they_have(
    state, database_url
):
    state.order(make_order(), make_seen("org/m"))
    with state._database.writing() as connection:
        connection.execute(sa.text("DROP TABLE dynquant_watch_mentions"))
        connection.execute(sa.text("UPDATE dynquant_watch_schema SET version = 1"))
    for _ in range(2):
        other = DatabaseWatchState(database_url)
        assert other.unsubmitted()[0].job_id == "j1"
        other.order(make_order("j2"), make_seen("org/m"), mention=True)
        assert [each.job_id for each in other.mentions(limit=9)] == ["j2"]
        other.close()


def test_an_author_who_was_told_is_not_told_of_another_job(state):
    state.order(make_order("j1"), make_seen("org/m"), mention=True)
    state.order(make_order("j2"), make_seen("org/m"), mention=True)
    assert [each.job_id for each in state.mentions(limit=9)] == ["j2"]
    state.mentioned("org/m")
    state.order(make_order("j3"), make_seen("org/m"), mention=True)
    assert state.mentions(limit=9) == ()


def test_who_sweeps_is_seen_by_others_until_the_turn_ends(state):
    assert not state.is_sweeping
    began_at = state.begin("one", lease_secs=60, is_due=lambda *_: True)
    assert began_at is not None
    assert state.is_sweeping
    state.end("one", began_at=began_at)
    assert not state.is_sweeping
    state.begin("dead", lease_secs=-1, is_due=lambda *_: True)
    assert not state.is_sweeping


def test_tables_of_another_version_are_refused(state, database_url):
    with state._database.writing() as connection:
        connection.execute(sa.text("UPDATE dynquant_watch_schema SET version = 99"))
    with pytest.raises(InvalidOptionError, match="version 99"):
        DatabaseWatchState(database_url)
