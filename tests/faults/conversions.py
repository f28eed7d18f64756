"""Whole conversions by the real steps, over HTTP through a proxy that injects faults.

Everything but the arithmetic is real every time: the steps of a job as the engine runs them, the
Hub's client, downloads, hashes, files, publishing. MLX computes once for the same bytes: a step of
the child process is looked up by the hash of all files that it reads, the model's included, and the
files that it left are restored.

`python -m tests.faults.conversions SCENE SEED…` prints the outcome of each schedule, one JSON
object per line; the client uses the environment of the process.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub import close_session

from dynquant.convert import STEPS, Step
from dynquant.errors import disk_errors_translated
from dynquant.hub import HubDatasets, HubModels, HubPublisher
from dynquant.jobs.held_job import HeldJob
from dynquant.jobs.job import Job, Outcome
from dynquant.jobs.job_text import results_from_text
from dynquant.jobs.request import JobRequest
from dynquant.jobs.steps import do_step
from dynquant.jobs.timing import Timing
from dynquant.model.naming import local_name, quantized_name
from dynquant.model.source import ModelSource
from dynquant.quant.options import RecipeOptions
from dynquant.report.outputs import write_file
from dynquant.runner.job_folder import SCRATCH, WORK
from dynquant.runner.job_steps import JobSteps
from dynquant.texts.corpus import Corpus
from local_hub import Commit, LocalHub
from tests.faults.proxy import FaultyProxy, Schedule, nothing, schedule

__all__ = [
    "REPOS",
    "ComputedHere",
    "Ending",
    "Remembered",
    "Scene",
    "convert",
    "held_job",
    "make_scene",
    "served",
    "steps_of",
    "verdict",
]

SOURCE = "org/tiny"
TARGETS = (4.5, 6.0)
REPOS = tuple(f"you/org__{quantized_name(SOURCE, bpw)}" for bpw in TARGETS)
TOKEN = "hf_canaryOfTheFaultyProxy"
PATIENCE = Timing(first_delay_secs=0.05, longest_delay_secs=0.2, retry_for_secs=1.0)
"""About seven retries of a step; a runner retries for half an hour."""

CARD = """---
license: other
license_name: tiny
license_link: https://example.org/tiny
---
# A model of nothing
"""
_HUBS_OWN, _README = {".gitattributes"}, "README.md"
_OF_A_RUN = re.compile(rb"http://(127\.0\.0\.1|localhost):\d+|written by dynquant, sha256 \w+")


@dataclass(frozen=True)
class Scene:
    """A folder with the inputs of every conversion: `model`, texts, and computed results."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def expected(self) -> dict[str, dict[str, str]]:
        """Repo → file → sha256, as without faults."""
        found: dict[str, dict[str, str]] = json.loads((self.folder / "expected.json").read_text())
        return found

    @property
    def options(self) -> dict[str, Any]:
        return {
            "menu": "3g64,4g64,8g64",
            "encoder": "minmax",
            "effort": "fast",  # which times no model on a CPU
            "calibration": str(self.folder / "calibration.txt"),
            "evaluation": str(self.folder / "heldout.txt"),
            "calibration_tokens": 256,
            "evaluation_tokens": 256,
        }


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The outcome of a conversion.

    Attributes:
        state: `published`, `refused`, `failed`; or `lost` if the Hub does not hold what the job
            says, or the job has no sentence.
        why: The sentence, or the difference between the repos.
        met: Kind of fault → how often it happened.
        num_wrong_commits: Commits that a later commit corrected; only a corrupted request causes
            them, since the Hub checks hashes of large files alone.
    """

    seed: int
    state: str
    why: str
    met: Mapping[str, int]
    num_wrong_commits: int
    secs: float


class Remembered(JobSteps):
    """The steps of a job, which compute once for the same bytes."""

    def __init__(self, store: Path, **options: Any) -> None:
        super().__init__(**options)
        self._store = store

    def _compute(self, call: Any, step: Step, source: ModelSource | None = None) -> Any:
        job = call.folder
        model = source or self._open[call.job_id][1]
        job.renew_work()
        kept = self._store / _key(step, job.path, model.folder)
        if not (kept / "answer.json").exists():
            answer = self._compute_afresh(call, step, source)
            for name in _contents(job.work):
                (kept / "files" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(job.work / name, kept / "files" / name)
            kept.mkdir(parents=True, exist_ok=True)
            write_file(kept / "answer.json", json.dumps(answer))
            return answer
        for name in _contents(kept / "files"):
            (job.work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(kept / "files" / name, job.work / name)
        return json.loads((kept / "answer.json").read_text())

    def _compute_afresh(self, call: Any, step: Step, source: ModelSource | None) -> Any:
        return super()._compute(call, step, source)


class ComputedHere(Remembered):
    """Computes in this process, which has MLX imported, instead of in a child."""

    def _compute_afresh(self, call: Any, step: Step, source: ModelSource | None) -> Any:
        from dynquant.runner.worker import _Work

        with disk_errors_translated():
            found = _Work(call.folder.path, lambda _said: None).do(step)
        return json.loads(json.dumps(found))


def _contents(folder: Path) -> dict[str, str]:
    """Name of each file → hash of its content, without the path of the folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            if path.name == "spec.json":
                spec = json.loads(content)
                del spec["source"]["folder"]
                content = json.dumps(spec).encode()
            found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def _key(step: str, job: Path, model: Path) -> str:
    """A hash of all files that a step reads."""
    childs = {WORK, SCRATCH}
    own = {name: each for name, each in _contents(job).items() if name.split("/")[0] not in childs}
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(model.iterdir())
    }
    return hashlib.sha256(json.dumps([step, own, files]).encode()).hexdigest()


def steps_of(scene: Scene, url: str, home: Path, kind: type[Remembered] = Remembered) -> Remembered:
    """A runner's steps with the Hub at `url`."""

    def no_wait(_secs: float) -> None:
        pass

    return kind(
        scene.folder / "computed",
        home=home,
        publisher=HubPublisher(endpoint=url, token=TOKEN, sleep=no_wait),
        texts=Corpus(open_dataset=HubDatasets(endpoint=url).open, allow_files=True),
        open_hub=lambda: HubModels(
            endpoint=url, token=TOKEN, cache_dir=home / "cache", sleep=no_wait
        ),
        max_memory_bytes=8 * 10**9,
    )


@contextmanager
def served(scene: Scene, plan: Schedule = nothing) -> Iterator[tuple[LocalHub, FaultyProxy]]:
    """A fresh Hub with the model, which can be reached by the proxy alone."""
    with LocalHub() as hub, FaultyProxy(int(hub.url.rpartition(":")[2]), plan) as proxy:
        hub.url = f"http://127.0.0.1:{proxy.port}"
        hub.cdn_url = f"http://localhost:{proxy.port}"
        hub.add(SOURCE, scene.model)
        hub.add_user("you", token=TOKEN)
        yield hub, proxy
        close_session()


def held_job(hub: LocalHub, scene: Scene) -> HeldJob:
    """The job that converts the model of the scene."""
    request = JobRequest(
        model=SOURCE,
        revision=hub.repos["model", SOURCE].branches["main"],
        targets_bpw=TARGETS,
        destination="you",
        requester=local_name("ann"),
        options=RecipeOptions.model_validate(scene.options),
    )
    now = datetime.now(UTC)
    return HeldJob(Job(id="job-1", request=request, recipe_version=1, submitted_at=now), nonce="1")


def convert(steps: JobSteps, held: HeldJob) -> Outcome | dict[str, str]:
    """Do every step as the engine does; the outcome of the job, or the result of each step."""
    results: dict[str, str] = {}
    try:
        for step in STEPS:
            done = do_step(steps, step, held, results, timing=PATIENCE)
            if done.outcome is not None:
                return done.outcome
            results[step] = done.artefact
    finally:
        steps.release(held.job.id)
    return results


def verdict(
    hub: LocalHub, expected: Mapping[str, Mapping[str, str]], ended: Outcome | Mapping[str, str]
) -> tuple[str, str]:
    """State and sentence of a conversion, compared with the repos on the Hub."""
    heads = {}
    for repo_id, files in expected.items():
        repo = hub.repos.get(("model", repo_id))
        commit = repo.at("main") if repo is not None else None
        there = files_of(commit)
        heads[repo_id] = commit.sha if commit is not None and there == files else None
        if there and there != files:
            return (
                "lost",
                f"{repo_id} is corrupt: {sorted(set(there.items()) ^ set(files.items()))}",
            )
    if isinstance(ended, Outcome):
        said = ended.sentence.endswith(".") and ended.reason_code != "internal"
        return str(ended.state) if said else "lost", ended.sentence
    told = {each.repo_id: each.commit_sha for each in results_from_text(ended["publish"])}
    if told != heads:
        return "lost", f"the job says {told}, and the Hub has {heads}"
    return "published", ""


def files_of(commit: Commit | None) -> dict[str, str]:
    """File → sha256, without the files that the Hub adds.

    The card names the address of the Hub, whose port is another each time, and its own hash.
    """
    found = {} if commit is None else commit.files
    hashes = {name: blob.sha256 for name, blob in found.items() if name not in _HUBS_OWN}
    if _README in hashes:
        anywhere = _OF_A_RUN.sub(b"", found[_README].read())
        hashes[_README] = hashlib.sha256(anywhere).hexdigest()
    return hashes


def make_scene(folder: Path, save_model: Any) -> Scene:
    """A model, texts, and their results without faults."""
    scene = Scene(folder)
    save_model(scene.model)
    (scene.model / "README.md").write_text(CARD)
    (scene.model / "LICENSE.txt").write_text("Do as you like.\n")
    for name, words in {"calibration": "one two three", "heldout": "red green blue"}.items():
        lines = [f"{number} {words} {number * number % 97}.\n" for number in range(400)]
        (folder / f"{name}.txt").write_text("".join(lines))
    with served(scene) as (hub, _), tempfile.TemporaryDirectory() as home:
        ended = convert(steps_of(scene, hub.url, Path(home), ComputedHere), held_job(hub, scene))
        assert not isinstance(ended, Outcome), ended
        expected = {repo: files_of(hub.repos["model", repo].at("main")) for repo in REPOS}
    (folder / "expected.json").write_text(json.dumps(expected))
    return scene


def run(scene: Scene, seed: int) -> Ending:
    """One conversion under the schedule of `seed`."""
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as home,
        served(scene, schedule(seed)) as (hub, proxy),
    ):
        ended = convert(steps_of(scene, hub.url, Path(home)), held_job(hub, scene))
        proxy.settle()
        expected = scene.expected
        state, why = verdict(hub, expected, ended)
        wrong = [
            commit.sha
            for repo_id, files in expected.items()
            if (repo := hub.repos.get(("model", repo_id))) is not None
            for commit in repo.commits.values()
            if files_of(commit) not in ({}, files)
        ]
    met = {str(kind): count for kind, count in proxy.met.items()}
    return Ending(
        seed=seed,
        state=state,
        why=why,
        met=met,
        num_wrong_commits=len(wrong),
        secs=time.monotonic() - started,
    )


if __name__ == "__main__":
    for word in sys.argv[2:]:
        sys.stdout.write(json.dumps(asdict(run(Scene(Path(sys.argv[1])), int(word)))) + "\n")
