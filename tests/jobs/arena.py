"""Runners in processes of their own over one database, which a test kills, freezes or cuts off."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.job import Job
from dynquant.jobs.request import JobRequest
from dynquant.jobs.timing import Timing
from tests.waiting import PATIENCE_SECS, wait_until

__all__ = ["PATIENT", "QUICK", "Arena", "make_request"]

ROOT = Path(__file__).parents[2]

QUICK = Timing(
    tick_secs=0.1,
    heartbeat_secs=0.2,
    dead_after_secs=1.4,
    takeover_secs=0.6,
    retry_for_secs=2.0,
    first_delay_secs=0.1,
    longest_delay_secs=0.5,
    stop_secs=3.0,
)
"""For tests that kill or freeze runners: these soon count as dead."""

PATIENT = dataclasses.replace(QUICK, dead_after_secs=PATIENCE_SECS, takeover_secs=PATIENCE_SECS)
"""For tests whose runners stay alive: on a busy machine, too, none counts as dead."""


def make_request(model: str = "org/Model", **overrides: Any) -> JobRequest:
    fields: dict[str, Any] = {"targets_bpw": (4.5,), "requester": "ann"}
    return JobRequest(model=model, **fields | overrides)


class Arena:
    """A folder, a database and any number of runners, whose module `driver` is."""

    def __init__(
        self, folder: Path, url: str, timing: Timing = QUICK, *, driver: str = "tests.jobs.driver"
    ) -> None:
        self.folder = folder
        self.url = url
        self._driver = driver
        self._timing = timing
        self._runners: list[subprocess.Popen[bytes]] = []
        (folder / "commands").mkdir(parents=True)
        self.board = DatabaseBoard(url, timing=timing)

    def close(self) -> None:
        for runner in self._runners:
            if runner.poll() is None:
                runner.kill()
            runner.wait()
        self.board.close()

    def start(
        self,
        runner_id: str = "one",
        *,
        memory_gb: int = 16,
        concurrency: int = 1,
        timing: Timing | None = None,
    ) -> subprocess.Popen[bytes]:
        """A runner; `timing` replaces the arena's timing."""
        environment = {
            **os.environ,
            "DYNQUANT_DATABASE_URL": self.url,
            "DYNQUANT_HOME": str(self.folder),
            "DYNQUANT_CONCURRENCY": str(concurrency),
            "TEST_MEMORY_GB": str(memory_gb),
            "TEST_TIMING": json.dumps(dataclasses.asdict(timing or self._timing)),
        }
        with (self.folder / f"log-{runner_id}").open("ab") as log:
            runner = subprocess.Popen(
                [sys.executable, "-m", self._driver, str(self.folder), runner_id],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
            )
        self._runners.append(runner)
        return runner

    def submit(
        self, model: str = "org/Model", *, needed_memory_bytes: int | None = None, **overrides: Any
    ) -> Job:
        return self.board.submit(
            make_request(model, **overrides),
            revision_sha="5ha",
            source_is_private=False,
            recipe_version=1,
            needed_memory_bytes=needed_memory_bytes,
        )

    def command(self, step: str, what: str | None, *, model: str | None = None) -> None:
        """Set the command of a step from now on, for all models or for one."""
        name = f"{step}@{model.replace('/', '-')}" if model else step
        path = self.folder / "commands" / name
        if what is None:
            path.unlink(missing_ok=True)
        else:
            staged = self.folder / name
            staged.write_text(what)
            staged.replace(path)

    def marks(self, event: str, job: Job) -> list[str]:
        """Steps of `job` for which `event` happened, in order."""
        return [step for _, step in self.marks_by(event, job)]

    def marks_by(self, event: str, job: Job) -> list[tuple[str, str]]:
        """As `marks`, with the runner."""
        path = self.folder / "marks"
        lines = path.read_text().splitlines() if path.exists() else []
        words = [line.split() for line in lines]
        return [
            (who, step) for who, what, job_id, step in words if (what, job_id) == (event, job.id)
        ]

    def num_published(self) -> int:
        return len(list(self.folder.glob("published/*")))

    def local_jobs(self) -> list[str]:
        return [path.name for path in self.folder.glob("local/*/*")]

    def over(self, job: Job) -> Job:
        """`job`, once it is over."""
        self.wait(lambda: self.board.get(job.id).is_over, f"job {job.request.model} to be over")
        return self.board.get(job.id)

    def wait_for_mark(self, event: str, job: Job, step: str) -> None:
        self.wait(lambda: step in self.marks(event, job), f"{event} of {step}")

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        try:
            wait_until(condition, what)
        except AssertionError as error:
            error.add_note(self.logs())
            raise

    def logs(self) -> str:
        return "\n".join(
            f"{path.name}:\n{path.read_text()}" for path in sorted(self.folder.glob("log-*"))
        )


def kill(runner: subprocess.Popen[bytes]) -> None:
    """As a machine does that runs out of memory or power."""
    runner.send_signal(signal.SIGKILL)
    runner.wait()
