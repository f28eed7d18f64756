"""Sweeps as processes that are killed, and the real engine that does their jobs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dynquant.jobs.job import Job, JobState
from dynquant.watch.config import parse_watch_config
from dynquant.watch.skips import Skip
from tests.jobs.arena import Arena
from tests.waiting import PATIENCE_SECS
from tests.watch.scene import (
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
            [sys.executable, "-m", "tests.watch.driver", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECS,
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
    # Between the two the cards are corrected: new commits with the same weights.
    edit_card(scene.hub, "org/m0", scene.at(1))
    edit_card(scene.hub, "org/m1", scene.at(1))
    sweeps.whole(scene.at(2))
    queued = [job.request.model for job in scene.board.list()]
    assert sorted(queued) == [f"org/m{number}" for number in range(4)]
    assert sweeps.whole(scene.at(3))["queued"] == []


def test_thirty_models_over_several_sweeps_and_three_deaths_are_published_each_once(
    scene, sweeps, tmp_path, monkeypatch
):
    hub, at = scene.hub, scene.at
    hub.add_user("you", token="hf_you")
    # 12 that match, on which three sweeps die and end.
    for number in range(8):
        add_model(hub, f"org/small-{number}", at(-60 + number))
    for number in range(4):
        add_model(hub, f"org/large-{number}", at(-50 + number), model_files(30 * 10**9))
    # 10 that must never be converted, each for a different reason.
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
    # 4 new, one already published, and two of the first changed: words, weights.
    for name in ("late-0", "late-1", "late-2"):
        add_model(hub, f"org/{name}", at(12))
    add_model(hub, "org/there", at(12))
    sha = hub.repos["model", "org/there"].branches["main"]
    there = {f"you/there-MLX-{bpw}bpw" for bpw in ("4.5", "6.0")}
    for name in there:
        add_dynquant(hub, name, "org/there", sha=sha)
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
    assert sorted(second["queued"]) == ["org/late-0", "org/late-1", "org/late-2", "org/small-1"]
    assert second["skipped"]["same_weights"] == second["skipped"]["already_published"] == 1
    assert third["queued"] == []
    assert {name: _kept(scene, name) for name in _REMEMBERED} == _REMEMBERED
    scene.config = parse_watch_config(RULES, name="watch.yaml")
    explained = {name: scene.watcher.explain(name, at(20)).decision.skip for name in _REFUSED}
    assert explained == _REFUSED

    ours = {f"org/small-{number}": (4.5, 6.0) for number in range(8)}
    ours |= {f"org/late-{number}": (4.5, 6.0) for number in range(3)}
    ours |= {"org/old-weights": (4.5, 6.0)}
    right = {
        f"you/org__{name[4:]}-MLX-{bpw}bpw": name for name, each in ours.items() for bpw in each
    }
    right |= {f"you/org__large-{number}-3.5": f"org/large-{number}" for number in range(4)}
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_you")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    arena = Arena(tmp_path / "arena", scene.url, driver="tests.watch.publishing")
    try:
        # One runner dies with the first of two repos published; another goes on.
        arena.command("published-4.5", "die-once", model="org/small-3")
        arena.start("one", concurrency=4).wait()
        arena.start("two", concurrency=4)
        before = _all_over(arena)
        assert _made(hub) == {
            name: (model, hub.repos["model", model].branches["main"], 1)
            for name, model in right.items()
            if model != "org/small-0"
        } | dict.fromkeys(_small(0), ("org/small-0", before["org/small-0"], 1))
        # Published quants are updated in the same repos when the weights change.
        new_weights(hub, "org/small-2", at(22), seed="better still")
        assert sweeps.whole(at(25))["queued"] == ["org/small-2"]
        _all_over(arena)
        head = hub.repos["model", "org/small-2"].branches["main"]
        found = _made(hub)
        assert set(found) == set(right)
        assert {name for name, (*_, num_commits) in found.items() if num_commits != 1} == _small(2)
        assert {found[name] for name in _small(2)} == {("org/small-2", head, 2)}
    finally:
        arena.close()
    assert {key[1] for key in hub.repos if key[1].startswith("you/")} == {
        *right,
        *there,
        "you/ours",
    }


_REMEMBERED = {
    "org/alien": Skip.UNSUPPORTED,
    "org/opted-out": Skip.OPTED_OUT,
    "org/old-words": Skip.OLD_WEIGHTS,
    "org/there": Skip.ALREADY_PUBLISHED,
    "org/small-0": Skip.SAME_WEIGHTS,
}
"""The stored skip of a close look."""

_REFUSED = {
    "org/gated": Skip.GATED,
    "org/quant-GGUF": Skip.QUANT,
    "shy/model": Skip.OPTED_OUT,
    "org/opted-out": Skip.OPTED_OUT,
    "org/lora": Skip.ADAPTER,
    "org/no-derivatives": Skip.NO_DERIVATIVES,
    "org/empty": Skip.NO_SAFETENSORS,
    "org/toy": Skip.TOY,
    "you/ours": Skip.OWN_RESULT,
}


def _kept(scene, name: str) -> Skip | None:
    seen = scene.state.seen(name)
    return seen.skip if seen is not None else None


def _all_over(arena: Arena) -> dict[str, str]:
    """The commit that each model's job was made of, once all are published or withdrawn."""

    def jobs() -> list[Job]:
        every = arena.board.list(limit=100)
        return [job for job in every if job.state is not JobState.CANCELLED]

    arena.wait(lambda: all(job.is_over for job in jobs()), "all jobs to be over")
    over = jobs()
    assert {job.state for job in over} == {JobState.PUBLISHED}
    return {job.request.model: job.request.revision or "" for job in over}


def _small(number: int) -> set[str]:
    return {f"you/org__small-{number}-MLX-{bpw}bpw" for bpw in ("4.5", "6.0")}


def _made(hub) -> dict[str, tuple[str, str, int]]:
    """Published repos: repo → model, its commit, and number of commits with files."""
    found = {}
    for (_, name), repo in hub.repos.items():
        if not name.startswith("you/") or name in _NOT_MADE:
            continue
        commits = repo.commits.values()
        num_commits = sum("config.json" in commit.files for commit in commits)
        plan = json.loads(repo.commits[repo.branches["main"]].files["dynquant/plan.json"].read())
        assert name.endswith((f"-{plan['target_bpw']:.1f}bpw", f"-{plan['target_bpw']:g}"))
        found[name] = (plan["source"], plan["revision_sha"], num_commits)
    return found


_NOT_MADE = frozenset({"you/ours", "you/there-MLX-4.5bpw", "you/there-MLX-6.0bpw"})
