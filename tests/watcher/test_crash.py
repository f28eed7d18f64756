"""Sweeps as processes that are killed, and the real engine that does what they queued."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dynquant.core.job import JobState
from dynquant.core.skips import Skip
from tests.jobs.arena import Arena
from tests.watcher.scene import (
    add_dynquant,
    add_model,
    edit_card,
    model_files,
    new_weights,
)

pytestmark = pytest.mark.hub

ROOT = Path(__file__).parents[2]

RULES = """
opt_out: [shy]
rules:
  - {name: small, authors: [org], max_parameters: 10B, bpw: [4.5, 6], destination: you,
     max_per_sweep: 50}
  - {name: large, authors: [org], bpw: [3.5], destination: "you/{model}-{bpw}", max_per_sweep: 50}
"""


class Sweeps:
    """Sweeps of one database, each a process."""

    def __init__(self, scene, folder: Path, rules: str = RULES) -> None:
        self._scene = scene
        self._rules = folder / "watch.yaml"
        self._rules.write_text(rules)

    def start(self, now: datetime, *death: str) -> subprocess.CompletedProcess[str]:
        words = (self._scene.hub.url, self._scene.url, now.isoformat(), str(self._rules), *death)
        return subprocess.run(
            [sys.executable, "-m", "tests.watcher.driver", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def killed(self, now: datetime, death: str) -> None:
        done = self.start(now, death)
        assert done.returncode == -signal.SIGKILL, done.stderr

    def whole(self, now: datetime) -> dict[str, Any]:
        done = self.start(now)
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report


@pytest.fixture
def sweeps(scene, tmp_path) -> Sweeps:
    return Sweeps(scene, tmp_path)


@pytest.mark.parametrize("moment", ["looked:2", "ordered:2", "queued:2", "submitted:2"])
def test_a_sweep_killed_at_any_moment_skips_nothing_and_queues_nothing_twice(scene, sweeps, moment):
    for number in range(4):
        add_model(scene.hub, f"org/m{number}", scene.at(-30 + number))
    sweeps.killed(scene.at(0), moment)
    # Between the two, somebody corrects the cards: the commits are others, the weights the same.
    edit_card(scene.hub, "org/m0", scene.at(1))
    edit_card(scene.hub, "org/m1", scene.at(1))
    sweeps.whole(scene.at(2))
    queued = [job.request.model for job in scene.board.list()]
    assert sorted(queued) == [f"org/m{number}" for number in range(4)]
    assert sweeps.whole(scene.at(3))["queued"] == []


def test_thirty_models_over_several_sweeps_and_two_deaths_are_published_each_once(
    scene, sweeps, tmp_path
):
    hub, at = scene.hub, scene.at
    # 12 that are right, on which three sweeps die and end.
    for number in range(8):
        add_model(hub, f"org/small-{number}", at(-60 + number))
    for number in range(4):
        add_model(hub, f"org/large-{number}", at(-50 + number), model_files(30 * 10**9))
    # 10 that must never be converted, each for a reason of its own.
    add_model(hub, "org/gated", at(-40), gated="auto")
    add_model(hub, "org/quant-GGUF", at(-40))
    add_model(hub, "org/alien", at(-40), model_files(config={"model_type": "alien"}))
    add_model(hub, "org/opted-out", at(-40), model_files(dynquant=False))
    add_model(hub, "shy/model", at(-40))
    add_model(hub, "org/lora", at(-40), model_files(tags=["lora"]))
    add_model(hub, "org/no-derivatives", at(-40), model_files(license="cc-by-nc-nd-4.0"))
    add_model(hub, "org/empty", at(-40), {"README.md": b"# Soon"})
    add_model(hub, "org/toy", at(-40), model_files(2 * 10**6))
    add_model(hub, "you/ours", at(-40), model_files(tags=["dynquant"]))
    # 4 that are older than the watch; two of them change.
    for name in ("old-0", "old-1", "old-words", "old-weights"):
        add_model(hub, f"org/{name}", at(-60 * 24 * 9))
    edit_card(hub, "org/old-words", at(-20))
    new_weights(hub, "org/old-weights", at(-20), seed="at last")

    sweeps.killed(at(0), "looked:9")
    sweeps.killed(at(5), "queued:3")
    first = sweeps.whole(at(10))
    # 4 more come, one is there already, and two of the first change: words, weights.
    for name in ("late-0", "late-1", "late-2"):
        add_model(hub, f"org/{name}", at(12))
    add_model(hub, "org/there", at(12))
    sha = hub.repos["model", "org/there"].branches["main"]
    for bpw in ("4.5", "6.0"):
        add_dynquant(hub, f"you/there-MLX-{bpw}bpw", "org/there", sha=sha)
    edit_card(hub, "org/small-0", at(13))
    new_weights(hub, "org/small-1", at(13), seed="better")
    second = sweeps.whole(at(15))
    third = sweeps.whole(at(20))

    seen_again = first["skipped"].pop("unchanged")  # by the sweeps that died
    assert seen_again == 6
    assert first["skipped"] == {
        "adapter": 1,
        "gated": 1,
        "no_derivatives": 1,
        "no_safetensors": 1,
        "opted_out": 1,
        "own_result": 1,
        "quant": 1,
        "toy": 1,
    }
    for name, skip in (
        ("org/alien", Skip.UNSUPPORTED),
        ("org/opted-out", Skip.OPTED_OUT),
        ("org/old-words", Skip.OLD_WEIGHTS),
    ):
        known = scene.state.known(name)
        assert known is not None
        assert known.skip is skip
    assert sorted(second["queued"]) == ["org/late-0", "org/late-1", "org/late-2", "org/small-1"]
    assert second["skipped"]["same_weights"] == second["skipped"]["already_published"] == 1
    assert third["queued"] == []

    right: dict[str, tuple[float, ...]] = {f"org/small-{number}": (4.5, 6.0) for number in range(8)}
    right |= {f"org/large-{number}": (3.5,) for number in range(4)}
    right |= {f"org/late-{number}": (4.5, 6.0) for number in range(3)}
    right |= {"org/old-weights": (4.5, 6.0)}
    arena = Arena(tmp_path / "arena", scene.url)
    try:
        arena.start(concurrency=4)
        jobs = scene.board.list(limit=100)
        for job in jobs:
            if job.state is not JobState.CANCELLED:
                assert arena.over(job).state is JobState.PUBLISHED
        published = scene.board.list(limit=100, states={JobState.PUBLISHED})
        assert {job.request.model: job.request.targets_bpw for job in published} == right
        assert Counter(job.request.model for job in published).most_common(1)[0][1] == 1
        assert arena.num_published() == len(right)
        assert all(arena.marks("published", job) == ["publish"] for job in published)
        heads = {
            name: hub.repos["model", name].branches["main"]
            for name in right
            if name != "org/small-0"
        }
        made_of = {job.request.model: job.request.revision for job in published}
        assert {name: made_of[name] for name in heads} == heads
    finally:
        arena.close()
