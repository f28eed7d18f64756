"""Runners started by the command line as by an operator, real MLX, a Hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from huggingface_hub import constants

from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.job import Job
from dynquant.jobs.request import JobRequest
from dynquant.model.naming import local_name
from dynquant.quant.recipe import RECIPE_VERSION
from local_hub import LocalHub
from tests.command_line import CALIBRATION, HELD_OUT, MODEL
from tests.postgres import PostgresServer, postgres_server
from tests.waiting import PATIENCE_SECS, wait_until

TOKEN = "hf_canaryCanaryCanaryCanary"
SECRET = "space-secret-canary-0123"
SOURCE = "org/sample-2m"
OPTIONS = {
    "menu": "3g64,4g64,8g64",
    "encoder": "minmax",
    "effort": "fast",
    "calibration": str(CALIBRATION),
    "evaluation": str(HELD_OUT),
    "calibration_tokens": 512,
    "evaluation_tokens": 512,
}
ROOT = Path(__file__).parents[2]


class Field:
    """A Hub, a database and runners over it."""

    def __init__(self, folder: Path, hub: LocalHub, url: str) -> None:
        self.folder = folder
        self.hub = hub
        self.url = url
        self.board = DatabaseBoard(url)
        self.runners: list[subprocess.Popen[bytes]] = []

    def environment(self, runner: str, **extra: str) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        return kept | {
            "HF_ENDPOINT": self.hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(self.folder / runner / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "DYNQUANT_HOME": str(self.folder / runner / "home"),
            "DYNQUANT_RUNNER_ID": runner,
            "DYNQUANT_DATABASE_URL": self.url,
            "DYNQUANT_LOCAL_TEXTS": "true",
            "PYTHONPATH": str(ROOT),
            **extra,
        }

    def start(self, runner: str = "one", **extra: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{runner}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "dynquant", "runner"],
            env=self.environment(runner, **extra),
            stdout=log,
            stderr=log,
        )
        log.close()
        self.runners.append(process)
        return process

    def run(self, *arguments: str, runner: str = "one") -> Any:
        """The JSON output of a command."""
        done = subprocess.run(
            [sys.executable, "-m", "dynquant", *arguments],
            env=self.environment(runner),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECS,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "--json" in arguments else done.stdout

    def submit(self, *targets: float, **overrides: Any) -> Job:
        fields: dict[str, Any] = {
            "model": SOURCE,
            "targets_bpw": targets or (4.5,),
            "destination": "you",
            "requester": local_name("ann"),
            "options": OPTIONS,
        }
        sha = self.hub.repos["model", SOURCE].branches["main"]
        return self.board.submit(
            JobRequest(**fields | overrides),
            revision_sha=sha,
            source_is_private=False,
            recipe_version=RECIPE_VERSION,
        )

    def wait(self, happens: Callable[[], Any], what: str) -> Any:
        try:
            return wait_until(happens, what)
        except AssertionError as error:
            for path in self.folder.glob("*.log"):
                error.add_note(path.read_text()[-3000:])
            raise

    def has_begun(self, job: Job, step: str) -> bool:
        return any(event.sentence == f"Step {step} begins." for event in self.board.log(job.id))

    def over(self, job: Job) -> Job:
        self.wait(lambda: self.board.get(job.id).is_over, "the job to end")
        return self.board.get(job.id)

    def commits(self, repo: str) -> list[str]:
        """Titles of the commits of a repo, without the Hub's own commit."""
        found = self.hub.repos["model", repo]
        head, titles = found.branches.get("main"), []
        while head:
            titles.append(found.commits[head].title)
            head = found.commits[head].parent
        return [title for title in titles if "initial commit" not in title.lower()]

    def is_whole(self, repo: str) -> bool:
        found = self.hub.repos["model", repo]
        files = found.commits[found.branches["main"]].files
        needed = {"README.md", "config.json", "tokenizer.json", "model.safetensors"}
        return needed | {"dynquant/plan.json", "dynquant/report.json"} <= set(files)

    def local_jobs(self, runner: str = "one") -> list[str]:
        folder = self.folder / runner / "home" / "jobs"
        return [path.name for path in folder.iterdir()] if folder.is_dir() else []

    def computing(self) -> list[psutil.Process]:
        """Child processes that compute for the jobs here."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if "dynquant.runner.worker" in words and str(self.folder) in " ".join(words):
                found.append(process)
        return found

    def close(self) -> None:
        self.hub.on_request = self.hub.after_request = None
        for runner in self.runners:
            if runner.poll() is None:
                runner.kill()
            runner.wait()
        self.board.close()


@pytest.fixture
def hub(monkeypatch) -> Iterator[LocalHub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub() as hub:
        hub.add(SOURCE, MODEL)
        hub.add_user("you", token=TOKEN)
        yield hub


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def sqlite_field(tmp_path, hub) -> Iterator[Field]:
    field = Field(tmp_path, hub, f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    yield field
    field.close()


@pytest.fixture
def postgres_field(tmp_path, hub, postgres) -> Iterator[Field]:
    field = Field(tmp_path, hub, postgres.new_database())
    yield field
    field.close()


@pytest.fixture(params=["sqlite", "postgres"])
def field(request) -> Field:
    return request.getfixturevalue(f"{request.param}_field")
