"""Jobs from the queue to the Hub, with real quantization, through kills, cancels and outages."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time

import pytest

from dynquant.convert import STEPS
from dynquant.jobs.job import JobState
from tests.command_line import needs_shared
from tests.service.conftest import SECRET, TOKEN, Field
from tests.waiting import PATIENCE_SECS

pytestmark = [pytest.mark.hub, pytest.mark.slow, needs_shared]
chaos = pytest.mark.skipif("DYNQUANT_CHAOS" not in os.environ, reason="set DYNQUANT_CHAOS=1")

REPO = "you/org__sample-2m-MLX-4.5bpw"


def assert_published_once(field: Field, job, *repos: str) -> None:
    over = field.board.get(job.id)
    assert over.state == JobState.PUBLISHED, over.sentence
    assert [each.repo_id for each in over.results] == [*repos]
    for repo in repos:
        assert len(field.commits(repo)) == 1
        assert field.is_whole(repo)
    field.wait(lambda: not field.local_jobs(), "the disk to be freed")
    field.wait(lambda: not field.computing(), "computing to end")


def kill_in_commit(field: Field, runner) -> threading.Event:
    """Kill `runner` when it requests the commit, before or after the Hub makes it."""
    killed = threading.Event()

    def kill(request) -> None:
        if "/commit/" in request.path and not killed.is_set():
            runner.kill()
            runner.wait()
            killed.set()

    setattr(field.hub, random.choice(["on_request", "after_request"]), kill)
    return killed


def test_a_runner_killed_while_it_measures_and_again_in_the_commit_publishes_once(sqlite_field):
    field = sqlite_field
    job = field.submit(4.5, 6.0)
    runner = field.start()
    field.wait(lambda: field.has_begun(job, "measure"), "measuring")
    field.wait(field.computing, "computing")
    runner.kill()
    runner.wait()
    field.wait(lambda: not field.computing(), "the child to notice")
    runner = field.start()
    killed = kill_in_commit(field, runner)
    field.wait(killed.is_set, "the commit")
    field.start()
    field.over(job)
    assert_published_once(field, job, REPO, "you/org__sample-2m-MLX-6.0bpw")
    begun = [event.sentence for event in field.board.log(job.id) if "begins" in event.sentence]
    assert begun.count("Step measure begins.") == 2
    assert begun.count("Step publish begins.") == 2
    assert all(begun.count(f"Step {step} begins.") == 1 for step in ("encode", "evaluate", "card"))


def test_a_cancel_stops_the_work_and_frees_the_disk(sqlite_field):
    field = sqlite_field
    job = field.submit()
    field.start()
    field.wait(field.computing, "computing")
    field.wait(lambda: field.has_begun(job, "measure"), "measuring")
    field.wait(field.computing, "computing")
    field.board.cancel(job.id)
    field.wait(lambda: not field.computing(), "computing to end")
    field.wait(lambda: not field.local_jobs(), "the disk to be freed")
    assert field.board.get(job.id).state == JobState.CANCELLED
    assert ("model", REPO) not in field.hub.repos
    # Another attempt succeeds, and an equal request is the same job.
    field.board.retry(job.id)
    field.over(job)
    assert_published_once(field, job, REPO)
    assert field.submit().id == job.id
    assert field.board.get(job.id).attempt == 2


@pytest.mark.harden("secrets")
def test_the_commands_show_a_job_and_no_secret_is_written_anywhere(sqlite_field):
    field = sqlite_field
    impossible = field.submit(1.0)
    forbidden = field.submit(4.5, destination="somebody-else")
    job = field.submit()
    extra = {"DYNQUANT_SPACE_URL": "http://127.0.0.1:9", "DYNQUANT_SPACE_SECRET": SECRET}
    runner = field.start(**extra)
    field.wait(lambda: field.has_begun(job, "measure"), "measuring")
    shown = field.run("jobs", "list", "--json")["jobs"]
    assert {each["id"]: each["state"] for each in shown} == {
        impossible.id: "refused",
        forbidden.id: "refused",
        job.id: "running",
    }
    assert field.board.get(impossible.id).reason_code == "infeasible_target"
    assert field.board.get(forbidden.id).reason_code == "destination_forbidden"
    field.over(job)
    assert field.run("jobs", "show", job.id, "--json")["job"]["state"] == "published"
    assert "Step publish begins." in field.run("jobs", "logs", job.id)
    runner.send_signal(signal.SIGTERM)
    assert runner.wait(PATIENCE_SECS) == 0
    written = [path for path in field.folder.rglob("*") if path.is_file()]
    assert any(path.name == "dynquant.log" for path in written)
    for path in written:
        content = path.read_bytes()
        assert TOKEN.encode() not in content, path
        assert SECRET.encode() not in content, path


@chaos
def test_a_hub_that_is_away_for_a_while_costs_only_time(sqlite_field):
    field = sqlite_field
    job = field.submit()
    field.start()
    field.wait(lambda: field.has_begun(job, "evaluate"), "evaluating")
    fault = field.hub.fail(".", status=503)
    field.wait(lambda: field.has_begun(job, "publish"), "publishing")
    refused = len(field.hub.requests)
    field.wait(lambda: len(field.hub.requests) > refused + 3, "three requests that are refused")
    field.hub.faults.remove(fault)
    field.over(job)
    assert_published_once(field, job, REPO)


@chaos
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("moment", ["at its start", "inside"])
def test_a_runner_killed_anywhere_publishes_once(field, record_property, step, moment):
    job = field.submit()
    runner = field.start()
    if step == "publish" and moment == "inside":
        killed = kill_in_commit(field, runner)
        field.wait(killed.is_set, "the commit")
    else:
        field.wait(lambda: field.has_begun(job, step), f"step {step}")
        time.sleep(0.0 if moment == "at its start" else random.uniform(0.1, 1.5))
        runner.kill()
        runner.wait()
    killed_at = time.monotonic()
    field.start()
    field.over(job)
    secs = time.monotonic() - killed_at
    assert_published_once(field, job, REPO)
    kind = field.url.partition(":")[0]
    record_property("chaos", f"{step:9} killed {moment:12} {kind:10} published after {secs:5.1f} s")


@chaos
def test_a_runner_frozen_inside_publish_and_thawed_after_the_takeover_changes_nothing(
    postgres_field, record_property
):
    field = postgres_field
    job = field.submit()
    frozen = field.start("one")
    stopped = threading.Event()

    def freeze(request) -> None:
        if request.method == "PUT" and not stopped.is_set():
            frozen.send_signal(signal.SIGSTOP)
            stopped.set()

    field.hub.on_request = freeze
    field.wait(stopped.is_set, "publishing")
    frozen_at = time.monotonic()
    field.start("two")
    field.over(job)
    secs = time.monotonic() - frozen_at
    frozen.send_signal(signal.SIGCONT)
    field.wait(lambda: not field.local_jobs("one"), "the thawed runner to notice")
    assert field.board.get(job.id).runner == "two"
    assert_published_once(field, job, REPO)
    record_property("chaos", f"frozen inside publish: taken over and published after {secs:.1f} s")


@pytest.fixture
def small_disk(sqlite_field):
    """The runner's home on a disk of nine megabytes."""
    home = sqlite_field.folder / "one" / "home"
    home.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=9m", "tmpfs", str(home)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small disk")
    yield home
    sqlite_field.close()
    subprocess.run(["umount", "-l", str(home)], check=True)


@chaos
def test_a_disk_that_fills_up_halfway_costs_only_time(sqlite_field, small_disk, record_property):
    field = sqlite_field
    job = field.submit()
    field.start()
    field.wait(lambda: field.has_begun(job, "measure"), "measuring")
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))

    def says_so() -> bool:
        progress = field.board.get(job.id).progress
        return progress is not None and "disk is full" in progress.sentence

    field.wait(says_so, "the sentence about the disk")
    filler.unlink()
    freed_at = time.monotonic()
    field.over(job)
    assert_published_once(field, job, REPO)
    record_property("chaos", f"disk full: published {time.monotonic() - freed_at:.1f} s after room")
