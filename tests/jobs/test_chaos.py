"""The long tests: a runner killed at every moment, and many jobs over three runners.

They take minutes and run where DYNQUANT_CHAOS is set: `make chaos`.
"""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest

from dynquant.convert import STEPS
from dynquant.jobs.job import JobState
from tests.jobs.arena import PATIENT

pytestmark = pytest.mark.skipif("DYNQUANT_CHAOS" not in os.environ, reason="set DYNQUANT_CHAOS=1")


@pytest.mark.parametrize("fault", ["inside", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_runner_killed_at_any_moment_publishes_once_and_redoes_nothing(
    arena, record_property, step, fault
):
    arena.command(step if fault == "inside" else f"after-{step}", "die-once")
    job = arena.submit()
    arena.start().wait()
    killed_at = time.monotonic()
    arena.start()
    over = arena.over(job)
    recovery_secs = time.monotonic() - killed_at
    assert (over.state, over.deaths) == (JobState.PUBLISHED, 1)
    assert arena.marks("published", job) == ["publish"]
    begun = Counter(arena.marks("begin", job))
    assert begun == Counter([*STEPS, step])
    arena.wait(lambda: not arena.local_jobs(), "the disk to be freed")
    database = arena.url.partition(":")[0]
    record_property(
        "chaos", f"{step:9} killed {fault:6} {database:10} {over.state} after {recovery_secs:.1f} s"
    )


def test_a_database_away_for_25_seconds_loses_nothing(postgres_arena, postgres, record_property):
    arena = postgres_arena
    arena.command("encode", "sleep 5")
    job = arena.submit()
    arena.start()
    arena.wait_for_mark("begin", job, "encode")
    postgres.stop()
    time.sleep(25)
    postgres.start()
    back_at = time.monotonic()
    arena.wait(lambda: arena.num_published() == 1, "the job")
    over = arena.over(job)
    assert (over.state, over.deaths) == (JobState.PUBLISHED, 0)
    assert arena.marks("end", job) == list(STEPS)
    record_property(
        "chaos", f"database away for 25 s: over after {time.monotonic() - back_at:.1f} s"
    )


def test_five_hundred_jobs_over_three_runners(postgres_arena, record_property):
    arena = postgres_arena
    # The first requester has half of all jobs.
    requesters = ["hog"] * 250 + [f"person-{n % 19}" for n in range(250)]
    jobs = {
        arena.submit(f"org/M-{number}", requester=requester).id: requester
        for number, requester in enumerate(requesters)
    }
    began = time.monotonic()
    for name in ("one", "two", "three"):
        arena.start(name, timing=PATIENT)
    for share in range(50, len(jobs) + 1, 50):
        arena.wait(lambda: arena.num_published() >= share, f"{share} jobs")  # noqa: B023
    secs = time.monotonic() - began
    lines = [line.split() for line in (arena.folder / "marks").read_text().splitlines()]
    order = [job_id for _, event, job_id, _ in lines if event == "published"]
    assert Counter(order) == Counter(list(jobs))  # no job is lost or done twice
    assert Counter(event for _, event, _, _ in lines)["begin"] == len(jobs) * len(STEPS)
    # While all requesters wait, each of the 20 has its turn, also the one with half of all jobs.
    first = Counter(jobs[job_id] for job_id in order[:200])
    index = sum(first.values()) ** 2 / (20 * sum(n * n for n in first.values()))
    record_property(
        "chaos",
        f"500 jobs, 20 requesters, 3 runners: {secs:.0f} s, {3 * secs / 500:.2f} s of a runner "
        f"per job; Jain's fairness of the first 200: {index:.3f} (hog {first['hog']})",
    )
    assert index > 0.95
    assert first["hog"] <= 15
