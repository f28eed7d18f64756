"""The child process of a job: `python -m dynquant.runner.worker STEP FOLDER`.

It reads `spec.json` and what the runner put beside it in FOLDER, and leaves what it makes in
`FOLDER/work`. On standard output it writes one JSON object a line: progress, and at the end
`result`, or `reason` and `sentence`. It ends when its standard input ends: then the runner has.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynquant.convert import Conversion, forecast
from dynquant.errors import (
    DynquantError,
    Reason,
    RetryLaterError,
    StorageFullError,
    disk_errors_translated,
    means_full_disk,
    means_no_memory,
)
from dynquant.progress import OnStep
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.plan import QuantPlan
from dynquant.quant.quality import Quality
from dynquant.report.artefacts import (
    cost_table_from_json,
    cost_table_to_json,
    plan_to_json,
    report_to_json,
)
from dynquant.report.outputs import read_text, write_file
from dynquant.runner.job_folder import MODELS, PAPERS, WORK
from dynquant.runner.spec import JobSpec, open_saved_text

__all__ = ["main"]

_REPORT_SECS = 0.5


class LineProgress:
    """Progress as lines on standard output; implements `progress.Progress`."""

    def __init__(self, say: Callable[[Mapping[str, Any]], None]) -> None:
        self._say = say

    @contextmanager
    def track(self, steps: Mapping[str, int]) -> Iterator[OnStep]:
        """Report the share of all parts that are done, twice a second at most."""
        done = dict.fromkeys(steps, 0)
        total = max(sum(steps.values()), 1)
        started, due = time.monotonic(), 0.0

        def on_step(step: str, amount: int = 1) -> None:
            nonlocal due
            done[step] += amount
            now = time.monotonic()
            if now >= due:
                due = now + _REPORT_SECS
                fraction = min(sum(done.values()) / total, 1.0)
                eta_secs = (now - started) * (1 - fraction) / fraction if fraction else None
                part = f"{step}, block {done[step]} of {steps[step]}"
                self._say({"part": part, "fraction": fraction, "eta_secs": eta_secs})

        yield on_step


class _Work:
    """One job's folder, opened."""

    def __init__(self, folder: Path, say: Callable[[Mapping[str, Any]], None]) -> None:
        self.folder = folder
        self.work = folder / WORK
        self.progress = LineProgress(say)
        self.spec = JobSpec.from_json((folder / "spec.json").read_text(encoding="utf-8"))
        with _limited_cpu(self.spec.max_reading_cpu_secs):
            self.quantizer = MlxQuantizer(
                self.spec.source.folder,
                name=self.spec.source.name,
                revision_sha=self.spec.source.revision_sha,
                dequantize=self.spec.recipe.dequantize,
            )

    def resolve(self) -> object:
        """What the job gives and takes, from headers alone."""
        return [
            asdict(each) for each in forecast(self.spec.source, self.quantizer, self.spec.recipe)
        ]

    def measure(self) -> object:
        """`cost_table.json`."""
        job = self._conversion()
        job.check(self.progress)
        table = job.polish(job.measure(self.progress), self.progress)
        write_file(self.work / "cost_table.json", cost_table_to_json(table))
        return None

    def encode(self) -> object:
        """A folder for each target in `models`, all of them or none."""
        job = self._conversion()
        staged, final = self.work / "encoding", self.work / MODELS
        for old in (staged, final):
            shutil.rmtree(old, ignore_errors=True)
        folders = {name: staged / name for name in job.targets}
        for each in folders.values():
            each.mkdir(parents=True)
        table = self._table(job)
        job.encode(job.allocate(table), table, folders, self.progress)
        staged.rename(final)
        return None

    def verify(self) -> object:
        """What each model wrote when it was tried."""
        job = self._conversion()
        return job.verify(job.allocate(self._table(job)), self._folders(job), self.progress)

    def evaluate(self) -> object:
        """Figures by name."""
        job = self._conversion()
        found = job.evaluate(job.allocate(self._table(job)), self._folders(job), self.progress)
        return {name: asdict(quality) for name, quality in found.items()}

    def card(self) -> object:
        """What the papers of each model say, as `papers/NAME/plan.json` and `report.json`."""
        job = self._conversion()
        table = self._table(job)
        plans: Mapping[str, QuantPlan] = job.allocate(table)
        figures = json.loads((self.folder / "figures.json").read_text(encoding="utf-8"))
        qualities = {name: Quality(**figure) for name, figure in figures.items()}
        for facts in job.facts(plans, table, qualities):
            folder = self.work / PAPERS / facts.name
            write_file(folder / "plan.json", plan_to_json(facts))
            write_file(folder / "report.json", report_to_json(facts))
        return None

    def _conversion(self) -> Conversion[Any]:
        job = Conversion(self.spec.source, self.quantizer, self.spec.recipe)
        with _limited_cpu(self.spec.max_reading_cpu_secs):
            job.read(
                calibration=open_saved_text(
                    self.folder / "calibration.jsonl", name=self.spec.calibration
                ),
                evaluation=open_saved_text(
                    self.folder / "evaluation.jsonl", name=self.spec.evaluation
                ),
            )
        return job

    def _table(self, job: Conversion[Any]) -> Any:
        text = read_text(self.folder / "cost_table.json") or ""
        return job.reuse(cost_table_from_json(text, name="cost_table.json"))

    def _folders(self, job: Conversion[Any]) -> dict[str, Path]:
        return {name: self.folder / MODELS / name for name in job.targets}


def main(step: str, folder: Path) -> int:
    """Do one step; returns the exit code."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print does not belong between our lines

    def say(content: Mapping[str, Any]) -> None:
        output.write(json.dumps(content) + "\n")
        output.flush()

    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        with disk_errors_translated():
            work = _Work(folder, say)
            result = getattr(work, step)()
    except DynquantError as error:
        return _told(say, error)
    except Exception as error:  # noqa: BLE001  the parent logs it and says a neutral sentence
        traceback.print_exc()
        if means_full_disk(error):  # as when MLX compiles for the CPU
            full = StorageFullError("The disk is full. Free some space, and try again.")
            return _told(say, full)
        if means_no_memory(error):
            return _told(
                say,
                RetryLaterError(
                    "Converting this model takes more memory than this runner may use.",
                    reason=Reason.NOT_ENOUGH_MEMORY,
                ),
            )
        return 1
    say({"result": result})
    return 0


@contextmanager
def _limited_cpu(secs: int) -> Iterator[None]:
    """SIGXCPU ends this process when it has used `secs` more CPU time; no code can hold that up."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime) + secs, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _told(say: Callable[[Mapping[str, Any]], None], error: DynquantError) -> int:
    say({"reason": error.reason, "sentence": str(error)})
    return error.exit_code


def _die_with_parent() -> None:
    """Kill this process and what it started once nobody holds the other end of its input."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
