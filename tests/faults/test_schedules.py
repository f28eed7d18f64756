"""Whole conversions over a network with faults by seeded schedules."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conversions import Scene
from tests.hardening import long_form

pytestmark = [pytest.mark.hub, pytest.mark.slow, pytest.mark.harden("faults")]

ROOT = Path(__file__).parents[2]
TIMEOUT_SECS = 3600


def endings(scene: Scene, home: Path, seeds: Sequence[int], num_processes: int) -> list[Any]:
    """Outcomes of conversions, which run in parallel because they mostly wait."""
    kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
    environment = kept | {
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_ETAG_TIMEOUT": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "tests.faults.conversions", str(scene.folder)]
    drivers = []
    for number in range(num_processes):
        with (home / f"{number}.log").open("wb") as log:
            words = [*command, *map(str, seeds[number::num_processes])]
            drivers.append(
                subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=log)
            )
    found = []
    for number, driver in enumerate(drivers):
        lines, _ = driver.communicate(timeout=TIMEOUT_SECS)
        assert driver.returncode == 0, (home / f"{number}.log").read_text()[-3000:]
        found += [json.loads(line) for line in lines.splitlines()]
    return found


def judge(ends: Sequence[Any], num_seeds: int, harden: Any, record: Any) -> None:
    """Print the outcomes; none may be lost, and faults must have happened."""
    assert len(ends) == num_seeds
    for state, count in Counter(each["state"] for each in ends).items():
        harden("refused" if state == "failed" else state, count)
    met = sum((Counter(each["met"]) for each in ends), Counter())
    wrong = sum(each["num_wrong_commits"] for each in ends)
    secs = sum(each["secs"] for each in ends)
    record("chaos", f"{num_seeds} schedules: {met.total()} troubles {dict(met)}, {secs:.0f} s")
    record("chaos", f"commits that a corrupted request spoiled and the next one mended: {wrong}")
    lost = [each for each in ends if each["state"] == "lost"]
    assert not lost, lost
    assert met.total() > 2 * num_seeds
    assert sum(each["state"] == "published" for each in ends) > num_seeds // 2


def test_ten_schedules_end_published_to_the_byte_or_with_a_sentence(
    scene, tmp_path, harden, record_property
):
    judge(endings(scene, tmp_path, range(1, 11), 2), 10, harden, record_property)


@long_form
@pytest.mark.parametrize("first", range(1, 201, 25))
def test_two_hundred_schedules_end_published_to_the_byte_or_with_a_sentence(
    scene, tmp_path, harden, record_property, first
):
    judge(endings(scene, tmp_path, range(first, first + 25), 3), 25, harden, record_property)
