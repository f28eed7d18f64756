"""The child process of a job: `python -m dynquant.runner.worker STEP FOLDER`.

It reads `spec.json` and the runner's other files in FOLDER, and leaves its files in `FOLDER/work`.
On standard output it writes one JSON object per line: progress, and at the end `result`, or
`reason` and `sentence`. It ends when its standard input ends, because then the runner has ended.
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

from dynquant.convert import NEEDS, Conversion, Made, Step
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
from dynquant.quant.quality import Quality
from dynquant.quant.verified import Verified
from dynquant.report.artefacts import (
    cost_table_from_json,
    cost_table_to_json,
    plan_to_json,
    report_to_json,
)
from dynquant.report.forecast import forecast
from dynquant.report.outputs import read_text, write_file
from dynquant.runner.job_folder import FACTS, MAX_TEXT_BYTES, MODELS, WINDOWS, WORK
from dynquant.runner.spec import JobSpec, open_saved_images, open_saved_text

__all__ = ["main"]

_ENCODING = "encoding"
"""In `work`: the models, until all of them are complete."""

_REPORT_SECS = 0.5


class LineProgress:
    """Progress as lines on standard output; implements `progress.Progress`."""

    def __init__(self, say: Callable[[Mapping[str, Any]], None]) -> None:
        self._say = say

    @contextmanager
    def track(self, steps: Mapping[str, int]) -> Iterator[OnStep]:
        """Report the fraction of all parts that are done, at most twice a second."""
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
                dtype=self.spec.recipe.dtype,
                tower=self.spec.recipe.tower,
            )

    def do(self, step: Step) -> object:
        """Do `step`; returns its result for standard output."""
        if step is Step.RESOLVE:
            spec = self.spec
            if spec.options.images:
                self.quantizer.require_tower()
            return [asdict(each) for each in forecast(spec.source, self.quantizer, spec.recipe)]
        job = self._conversion()
        made = self._made_before(step, job)
        job.do(step, made, self.progress)
        if step is Step.MEASURE:
            windows = json.dumps(job.windows_to_json())
            if len(windows) <= MAX_TEXT_BYTES:  # else every step tokenizes the texts again
                write_file(self.work / WINDOWS, windows)
        return self._leave(step, made)

    def _conversion(self) -> Conversion[Any]:
        options = self.spec.options
        job = Conversion(self.spec.source, self.quantizer, self.spec.recipe)
        with _limited_cpu(self.spec.max_reading_cpu_secs):
            images = {
                role: open_saved_images(self.folder / f"{role}.json") for role in options.images
            }
            if (windows := read_text(self.folder / WINDOWS)) is not None:
                job.use_windows(json.loads(windows), **images)
                return job
            job.read(
                calibration=open_saved_text(
                    self.folder / "calibration.jsonl", name=options.calibration
                ),
                evaluation=open_saved_text(
                    self.folder / "evaluation.jsonl", name=options.evaluation
                ),
                **images,
            )
        return job

    def _made_before(self, step: Step, job: Conversion[Any]) -> Made:
        """The results of earlier steps that `step` needs, from the runner's files."""
        made, needs = Made(), NEEDS[step]
        if Step.MEASURE in needs:
            text = read_text(self.folder / "cost_table.json") or ""
            made.table = job.reuse(cost_table_from_json(text, name="cost_table.json"))
        if Step.ENCODE in needs:
            made.folders = {name: self.folder / MODELS / name for name in job.targets}
        if Step.VERIFY in needs:
            verified = json.loads((self.folder / "verified.json").read_text(encoding="utf-8"))
            made.verified = {name: Verified.from_json(each) for name, each in verified.items()}
        if Step.EVALUATE in needs:
            figures = json.loads((self.folder / "figures.json").read_text(encoding="utf-8"))
            made.figures = {name: Quality(**figure) for name, figure in figures.items()}
        if step is Step.ENCODE:
            for old in (self.work / _ENCODING, self.work / MODELS):
                shutil.rmtree(old, ignore_errors=True)
            made.folders = {name: self.work / _ENCODING / name for name in job.targets}
            for folder in made.folders.values():
                folder.mkdir(parents=True)
        return made

    def _leave(self, step: Step, made: Made) -> object:
        """Leave the files of `step` in `work`; returns its small results."""
        match step:
            case Step.MEASURE if made.table is not None:
                write_file(self.work / "cost_table.json", cost_table_to_json(made.table))
            case Step.ENCODE:  # all folders at once
                (self.work / _ENCODING).rename(self.work / MODELS)
            case Step.VERIFY:
                return {name: asdict(found) for name, found in made.verified.items()}
            case Step.EVALUATE:
                return {name: quality.to_json() for name, quality in made.figures.items()}
            case Step.CARD:
                for facts in made.facts:
                    folder = self.work / FACTS / facts.name
                    write_file(folder / "plan.json", plan_to_json(facts))
                    write_file(folder / "report.json", report_to_json(facts))
        return None


def main(step: Step, folder: Path) -> int:
    """Do one step; returns the exit code."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of libraries must not get between our lines

    def say(content: Mapping[str, Any]) -> None:
        output.write(json.dumps(content) + "\n")
        output.flush()

    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        with disk_errors_translated():
            work = _Work(folder, say)
            result = work.do(step)
    except DynquantError as error:
        return _fail(say, error)
    except Exception as error:  # noqa: BLE001  the parent logs it and gives a neutral sentence
        traceback.print_exc()
        if means_full_disk(error):  # as when MLX compiles for the CPU
            full = StorageFullError("The disk is full. Free some space, and try again.")
            return _fail(say, full)
        if means_no_memory(error):
            return _fail(
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
    """SIGXCPU ends this process when it has used `secs` more CPU time, whatever code runs."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime) + secs, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _fail(say: Callable[[Mapping[str, Any]], None], error: DynquantError) -> int:
    """Write why the step failed; returns the exit code."""
    say({"reason": error.reason, "sentence": str(error)})
    return error.exit_code


def _die_with_parent() -> None:
    """Kill this process and its children once its standard input ends."""
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(Step(sys.argv[1]), Path(sys.argv[2])))
