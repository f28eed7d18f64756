"""A step of a job in a process of its own, with its answer and its use of memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynquant.errors import Reason
from tests.waiting import PATIENCE_SECS

__all__ = ["MAX_PEAK_BYTES", "Ending", "apart", "compute"]

MAX_PEAK_BYTES = 1_500_000_000
"""Of CPU time; the libraries use a tenth of it."""

_DATA_BYTES = MAX_PEAK_BYTES
_MAX_CPU_SECS = 60
"""Far more than an honest model of this size needs; then the process is killed."""

# Imported once, then forked: MLX and its dependencies take seconds to import.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["dynquant.runner.worker"])


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a step ended.

    Attributes:
        said: Its last line: `result`, or `reason` and `sentence`.
        code: The exit code, or minus the signal.
        peak_bytes: Largest resident size.
        errors: Its standard error.
    """

    said: dict[str, Any]
    code: int
    peak_bytes: int
    errors: str

    @property
    def reason(self) -> str | None:
        """The reason of its refusal, by `dynquant.runner.worker_process`; None if it succeeded."""
        if self.code == -signal.SIGXCPU:
            return Reason.TAKES_TOO_LONG
        found = self.said.get("reason")
        assert found or "result" in self.said, f"code {self.code}: {self.errors[-3000:]}"
        return found


def compute(step: str, job: Path) -> Ending:
    """Do `step` of the job in this folder with the code that a runner's child runs."""
    return apart(_compute, job, step, str(job))


def apart(work: Callable[..., None], folder: Path, *arguments: str) -> Ending:
    """Run `work`, which writes JSON to standard output, in a process with limits."""
    process = _processes.Process(target=_bounded, args=(work, str(folder), arguments))
    process.start()
    process.join(PATIENCE_SECS)
    if process.is_alive():
        process.kill()
        process.join()
    lines = _text(folder / "said").splitlines()
    peak_bytes = int(_text(folder / "taken") or 0)
    assert process.exitcode is not None
    return Ending(
        said=json.loads(lines[-1]) if lines else {},
        code=process.exitcode,
        peak_bytes=peak_bytes,
        errors=_text(folder / "errors"),
    )


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _compute(step: str, job: str) -> None:
    from dynquant.convert import Step
    from dynquant.runner.worker import main

    sys.exit(main(Step(step), Path(job)))


def _bounded(work: Callable[..., None], folder: str, arguments: tuple[str, ...]) -> None:
    os.setsid()
    os.chdir(folder)
    unending, _held = os.pipe()  # a process that waits for the end of the output sees none
    os.dup2(unending, 0)
    for number, name in ((1, "said"), (2, "errors")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    resource.setrlimit(resource.RLIMIT_DATA, (_DATA_BYTES, _DATA_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_MAX_CPU_SECS, _MAX_CPU_SECS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.environ |= {"HOME": folder, "HF_HUB_OFFLINE": "1"}
    try:
        work(*arguments)
    finally:
        peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        Path(folder, "taken").write_text(str(peak_bytes))
        sys.stdout.flush()
