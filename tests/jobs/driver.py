"""A runner as a process of its own, whose steps obey commands in files.

    python -m tests.jobs.driver FOLDER RUNNER_ID

In FOLDER:
    marks                   one line per event: `runner event job step`
    commands/STEP           the step's command, for all models or for one: `STEP@model`;
                            see `FakeSteps.obey`
    published/JOB           the job's repos; written once
    local/RUNNER/JOB        the job's files on that machine
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from dynquant.errors import (
    DynquantError,
    HubUnavailableError,
    NotEnoughMemoryError,
    UnsupportedModelError,
    VerificationError,
)
from dynquant.jobs.engine import JobEngine
from dynquant.jobs.job import PublishedRepo, StepProgress
from dynquant.jobs.job_text import results_to_text
from dynquant.jobs.request import JobRequest
from dynquant.jobs.timing import Timing
from dynquant.settings import Settings

GB = 10**9

ERRORS: dict[str, Exception] = {
    "refused": UnsupportedModelError("This model has code of its own. Choose another."),
    "never": VerificationError("The folder is not what was planned."),
    "later": HubUnavailableError("The Hub did not answer."),
    "bug": ZeroDivisionError("/home/somebody/secret.py"),
}


class FakeSteps:
    """Steps that take no time unless a command says so."""

    def __init__(self, folder: Path, runner_id: str, memory_bytes: int) -> None:
        self._folder = folder
        self._runner_id = runner_id
        self._memory_bytes = memory_bytes
        self.local = folder / "local" / runner_id
        self.local.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        step: str,
        request: JobRequest,
        results: Mapping[str, str],
        *,
        job_id: str,
        report: Callable[[StepProgress], None],
        is_cancelled: Callable[[], bool],
    ) -> str:
        self._mark("begin", job_id, step)
        (self.local / job_id).touch()
        report(StepProgress(step=step, fraction=0.5, eta_secs=7.0, layer="model.layers.0"))
        self.obey(step, request.model, job_id, is_cancelled)
        artefact = f"{step} of {request.model} after {len(results)}"
        if step == "publish":
            artefact = self.publish(request, job_id)
        self._mark("end", job_id, step)
        self.obey(f"after-{step}", request.model, job_id, is_cancelled)
        return artefact

    def release(self, job_id: str) -> None:
        (self.local / job_id).unlink(missing_ok=True)

    def local_jobs(self) -> Collection[str]:
        return [path.name for path in self.local.iterdir()]

    def publish(self, request: JobRequest, job_id: str) -> str:
        """Idempotent, as publishing to the Hub: the first commit stays, also of two at once."""
        path = self._folder / "published" / job_id
        result = results_to_text((PublishedRepo(repo_id=f"me/{job_id}", commit_sha="c0ffee"),))
        path.parent.mkdir(exist_ok=True)
        with contextlib.suppress(FileExistsError), path.open("x") as file:
            file.write(result)
            self._mark("published", job_id, "publish")
        return result

    def obey(self, step: str, model: str, job_id: str, is_cancelled: Callable[[], bool]) -> None:
        command = self._command(step, model)
        if command is None:
            return
        word, *arguments = command.read_text().split()
        if word.endswith("-once"):
            command.unlink()
        match word.removesuffix("-once"):
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "freeze":
                self._mark("frozen", job_id, step)
                os.kill(os.getpid(), signal.SIGSTOP)
            case "sleep":
                until = time.monotonic() + float(arguments[0])
                while time.monotonic() < until:
                    if is_cancelled():
                        self._mark("stopped", job_id, step)
                        raise RuntimeError("The error of a stopped step is ignored.")
                    time.sleep(0.02)
            case "need":
                needed_bytes = int(arguments[0]) * GB
                if needed_bytes > self._memory_bytes:
                    raise NotEnoughMemoryError("It needs more memory.", needed_bytes=needed_bytes)
            case "fail":
                raise ERRORS[arguments[0]]

    def _command(self, step: str, model: str) -> Path | None:
        commands = self._folder / "commands"
        for name in (f"{step}@{model.replace('/', '-')}", step):
            if (commands / name).exists():
                return commands / name
        return None

    def _mark(self, event: str, job_id: str, step: str) -> None:
        with (self._folder / "marks").open("a") as file:
            file.write(f"{self._runner_id} {event} {job_id} {step}\n")


def main(folder: Path, runner_id: str, steps: type[FakeSteps] = FakeSteps) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    memory_bytes = int(os.environ["TEST_MEMORY_GB"]) * GB
    engine = JobEngine(
        Settings.from_environment({**os.environ, "DYNQUANT_RUNNER_ID": runner_id}),
        steps(folder, runner_id, memory_bytes),
        memory_bytes=memory_bytes,
        timing=Timing(**json.loads(os.environ["TEST_TIMING"])),
    )
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    try:
        engine.run(stopping)
    except DynquantError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
