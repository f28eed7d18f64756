from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.jobs.fair_queue import WaitingJob, expected_wait_secs, in_turn


def make_waiting(number: int, requester: str = "ann", **overrides: Any) -> WaitingJob:
    fields: dict[str, Any] = {"id": f"{requester}-{number}", "priority": 0}
    return WaitingJob(**fields | overrides, requester=requester, number=number)


def order(waiting, *, running=None, last_served=None) -> list[str]:
    turns = in_turn(waiting, running=running or {}, last_served=last_served or {})
    return [job.id for job in turns]


def test_a_requester_with_a_hundred_jobs_does_not_keep_one_with_a_single_job_waiting():
    waiting = [make_waiting(number) for number in range(100)] + [make_waiting(100, "bob")]
    assert order(waiting)[:3] == ["ann-0", "bob-100", "ann-1"]


def test_who_was_served_least_recently_goes_first():
    waiting = [make_waiting(0), make_waiting(1, "bob"), make_waiting(2, "cid")]
    assert order(waiting, last_served={"ann": 9, "bob": 8}) == ["cid-2", "bob-1", "ann-0"]


def test_running_jobs_count_as_turns():
    waiting = [make_waiting(0), make_waiting(1, "bob"), make_waiting(2, "bob")]
    assert order(waiting, running={"ann": 2}) == ["bob-1", "bob-2", "ann-0"]


def test_a_person_goes_before_the_watcher():
    waiting = [make_waiting(0, "watcher", priority=1), make_waiting(1)]
    assert order(waiting) == ["ann-1", "watcher-0"]


def test_a_job_that_a_runner_had_before_goes_first_within_its_priority():
    waiting = [
        make_waiting(0),
        make_waiting(1, "bob", has_begun=True),
        make_waiting(2, "watcher", priority=1, has_begun=True),
    ]
    assert order(waiting) == ["bob-1", "ann-0", "watcher-2"]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.sampled_from([0, 1]), st.booleans()), max_size=40
    ),
    st.dictionaries(st.sampled_from("abcde"), st.integers(1, 3)),
    st.dictionaries(st.sampled_from("abcde"), st.integers(0, 99)),
)
def test_every_job_has_one_turn_and_requesters_take_turns(jobs, running, last_served):
    waiting = [
        make_waiting(number, who, priority=priority, has_begun=has_begun)
        for number, (who, priority, has_begun) in enumerate(jobs)
    ]
    turns = in_turn(waiting, running=running, last_served=last_served)
    assert sorted(turns, key=lambda job: job.number) == waiting
    bands = [(job.priority, not job.has_begun) for job in turns]
    assert bands == sorted(bands)
    for band in set(bands):
        members = [job for job in turns if (job.priority, not job.has_begun) == band]
        assert _own_order_is_kept(members)
    fresh = [job for job in turns if job.priority == 0 and not job.has_begun]
    if not running and not any(job.has_begun for job in turns):
        assert _nobody_is_two_ahead(fresh)


def _own_order_is_kept(turns) -> bool:
    by_requester: dict[str, list[int]] = {}
    for job in turns:
        by_requester.setdefault(job.requester, []).append(job.number)
    return all(numbers == sorted(numbers) for numbers in by_requester.values())


def _nobody_is_two_ahead(turns) -> bool:
    """While a requester waits, no other requester is served two times more often."""
    left = Counter(job.requester for job in turns)
    served: Counter[str] = Counter()
    for job in turns:
        served[job.requester] += 1
        left[job.requester] -= 1
        waiting = [who for who, count in left.items() if count]
        if any(served[job.requester] - served[who] > 1 for who in waiting):
            return False
    return True


@pytest.mark.parametrize(
    ("ahead", "running", "slots", "secs", "expected"),
    [
        (0, 0, 1, 100.0, 0.0),
        (0, 1, 1, 100.0, 50.0),
        (3, 1, 1, 100.0, 350.0),
        (3, 2, 2, 100.0, 200.0),
        (0, 1, 4, 100.0, 0.0),
        (0, 0, 0, 100.0, None),
        (5, 1, 1, None, None),
    ],
)
def test_the_wait_follows_from_the_jobs_ahead_and_what_jobs_take(
    ahead, running, slots, secs, expected
):
    assert (
        expected_wait_secs(num_ahead=ahead, num_running=running, num_slots=slots, job_secs=secs)
        == expected
    )
