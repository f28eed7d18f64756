"""A disk that is full, or becomes read-only, at every step of a conversion."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dynquant.convert import STEPS
from dynquant.errors import Reason
from dynquant.jobs.job import JobState
from dynquant.jobs.steps import do_step
from dynquant.jobs.timing import Timing
from tests.faults.conversions import (
    PATIENCE,
    Scene,
    held_job,
    served,
    steps_of,
    verdict,
)
from tests.hardening import long_form
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.hub,
    pytest.mark.slow,
    pytest.mark.harden("faults"),
    pytest.mark.filterwarnings(
        "ignore:Not enough free disk space"
    ),  # the client's own error comes first
]

IMPATIENCE = Timing(first_delay_secs=0.05, retry_for_secs=0.1)
NUM_BYTES = 24_000_000
REASONS = ("disk is full", "cannot be written", " free.")


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A separate disk for the runner's home and cache."""
    home = tmp_path / "home"
    home.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={NUM_BYTES}", "tmpfs", str(home)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small disk")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)


@contextlib.contextmanager
def full(disk: Path) -> Iterator[None]:
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def read_only(disk: Path) -> Iterator[None]:
    command = ["mount", "-o", "remount,ro", str(disk)]
    # The system removes the mounts of a confined child a moment after the child has ended.
    wait_until(
        lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0,
        "the disk to be free for remounting",
    )
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


HARMS: list[Callable[[Path], contextlib.AbstractContextManager[None]]] = [full, read_only]


def convert_in_spite_of(harm, scene: Scene, disk: Path, harden) -> None:
    """Try each step with a broken disk and no files of earlier steps; then with a good disk."""
    with served(scene) as (hub, _):
        steps, held = steps_of(scene, hub.url, disk), held_job(hub, scene)
        results: dict[str, str] = {}
        for step in STEPS:
            steps.release(held.job.id)
            shutil.rmtree(disk / "cache", ignore_errors=True)
            with harm(disk):
                done = do_step(steps, step, held, results, timing=IMPATIENCE)
                if done.outcome is not None:
                    assert done.outcome.state == JobState.FAILED
                    assert done.outcome.reason_code == Reason.STORAGE_FULL, done.outcome
                    assert any(why in done.outcome.sentence for why in REASONS), done.outcome
                harden("refused" if done.outcome else "handled")
            done = do_step(steps, step, held, results, timing=PATIENCE)
            assert done.outcome is None, (step, done.outcome)
            results[step] = done.artefact
        steps.release(held.job.id)
        assert not steps.local_jobs()
        assert verdict(hub, scene.expected, results) == ("published", "")
        harden("published")


@pytest.mark.parametrize("harm", HARMS)
def test_a_disk_that_fails_at_any_step_costs_only_time(scene, disk, harm, harden):
    convert_in_spite_of(harm, scene, disk, harden)


@long_form
@pytest.mark.parametrize("harm", HARMS)
def test_a_disk_that_fails_while_mlx_computes_costs_only_time(scene, disk, harm, harden, tmp_path):
    fresh = Scene(tmp_path / "scene")
    shutil.copytree(scene.folder, fresh.folder, ignore=shutil.ignore_patterns("computed"))
    convert_in_spite_of(harm, fresh, disk, harden)
