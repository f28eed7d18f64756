"""Quality at equal size, time and memory: dynquant and its peers side by side.

    python -m benchmarks.quality [--full] [--models DIR,DIR] [--judge-on-cpu]
                                 [--targets BPW,BPW] [--elsewhere TEXT,TEXT]
                                 [--at-once N] [--keep DIR] [--out DIR]

Every quantizer runs for real, by its own command, in a process and (peers) a virtual environment
of its own, which this script makes, on the same calibration tokens. Stored bits are counted from
the files (`stored_bits.py`), and all results of a model are evaluated in one pass over the same
held-out windows. `quality-MODEL.json`, `.md` and `-{light,dark}.svg` go to `--out`. With `--keep`
an interrupted run is resumed; results of dynquant are reused for the same commit only. A large GPU
makes several results of a small model at once, whose times then say little. The exit code is 0 if
the goals are met.
"""

from __future__ import annotations

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX

# isort: split

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from benchmarks.peers import EQUAL_BPW, REQUIREMENTS, Attempt, Outcome, attempts, ours, run
from benchmarks.report import markdown, picture
from benchmarks.stored_bits import stored_bpw
from dynquant.cli.console import ConsoleProgress, stdout
from dynquant.cli.wiring import open_model, open_texts
from dynquant.errors import DynquantError
from dynquant.quant.mlx import arrays
from dynquant.quant.mlx.calibration import Windows
from dynquant.quant.mlx.loading import open_model as open_folder
from dynquant.quant.mlx.opened import tool_versions
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.tokenizing import open_tokenizer
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import Recipe
from dynquant.report.artefacts.fields import text_to_json

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
MODELS = (SHARED / "models" / "tiny-qwen3", SHARED / "models" / "tiny-qwen3-moe")
TARGETS, FEW_TARGETS = (3.0, 3.5, 4.0, 4.5, 5.0, 6.0), (3.0, 4.0, 5.0)
LIMIT_SECS, SHORT_LIMIT_SECS = 900.0, 240.0  # of one run
TOKENS, NO_CHECKOUT = "calibration.npy", "not a checkout"
EVALUATION_TOKENS, FEW_EVALUATION_TOKENS = 12_288, 6_144
# Of the mean KL of mlx_lm.dynamic_quant, and of that of the best peer.
BARS, BEST_PEER_BAR = {3.0: 0.55, 4.0: 0.45, 5.0: 0.40}, 0.9


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; `why_not` is the reason if there is no result.

    `elsewhere` has the figures on texts of another kind.
    """

    method: str
    setting: str
    target_bpw: float | None
    stored_bpw: float | None = None
    quality: Quality | None = None
    elsewhere: Mapping[str, Quality] = field(default_factory=dict)
    wall_secs: float = 0.0
    cpu_secs: float = 0.0
    peak_bytes: int = 0
    num_results: int = 1
    why_not: str = ""


def main() -> int:
    """Run the benchmark; 0 when there are goals and all are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all peers, sizes and efforts")
    parser.add_argument("--models", help="folders, with commas")
    parser.add_argument("--calibration", default=str(SHARED / "text" / "calibration.txt"))
    parser.add_argument("--eval", default=str(SHARED / "text" / "heldout.txt"))
    parser.add_argument("--elsewhere", default="", help="texts of other kinds, to judge by too")
    parser.add_argument("--targets", help="stored bits per weight, with commas, at all efforts")
    parser.add_argument("--without", default="", help="methods to leave out, with commas")
    parser.add_argument("--eval-tokens", type=int, help="held-out tokens to judge by")
    parser.add_argument("--limit", type=float, help="seconds for one run of a quantizer")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side")
    parser.add_argument(
        "--judge-on-cpu", action="store_true", help="in float32, whatever quantizes"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--venvs", type=Path, default=ROOT / ".peers")
    parser.add_argument("--keep", type=Path, help="keep what was made here, and go on from it")
    options = parser.parse_args()
    made_on = machine()
    if options.judge_on_cpu:
        mx.set_default_device(mx.cpu)
    judge_in_float32()
    options.venvs = options.venvs.resolve()  # commands run in other folders
    models = list(MODELS)
    if options.models:
        models = [Path(model).resolve() for model in options.models.split(",")]
    models = models if options.full or options.models else models[:1]
    met = bool(models)
    for model in models:
        if not model.is_dir():
            stdout.print(f"There is no model at {model}; pass --models, --calibration and --eval.")
            met = False
            continue
        with tempfile.TemporaryDirectory() as scratch:
            # In full, as the models: the quantizers run in other folders.
            work = (options.keep or Path(scratch)).resolve() / model.name
            result = benchmarked(model, options, work)
        judge = "the CPU in float32" if options.judge_on_cpu else "it in float32"
        result["machine"] = f"{made_on}, judged on {judge}"
        options.out.mkdir(parents=True, exist_ok=True)
        for name, text in written(model.name, result):
            (options.out / name).write_text(text, encoding="utf-8")
        stdout.print(markdown(result))
        met = met and bool(result["bars"]) and all(bar["met"] for bar in result["bars"])
    return 0 if met else 1


def judge_in_float32() -> None:
    """Have this process compute in float32 on a GPU too; quantizers run in others."""
    usual = arrays.compute_dtype
    for module in [*sys.modules.values()]:
        if vars(module).get("compute_dtype") is usual:
            vars(module)["compute_dtype"] = lambda _stored: mx.float32


def written(model: str, result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and content of each file of a result."""
    yield f"quality-{model}.json", json.dumps(result, indent=1) + "\n"
    yield f"quality-{model}.md", markdown(result)
    if not any(row["quality"] for row in result["rows"]):
        return  # the table says why not
    for theme in ("light", "dark"):
        yield f"quality-{model}-{theme}.svg", picture(result, dark=theme == "dark")


def benchmarked(model: Path, options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All results: made, evaluated and compared."""
    full = options.full
    targets: tuple[float, ...] = TARGETS if full else FEW_TARGETS
    if options.targets:
        targets = tuple(map(float, options.targets.split(",")))
    limit_secs = options.limit or (LIMIT_SECS if full else SHORT_LIMIT_SECS)
    work.mkdir(parents=True, exist_ok=True)

    late = set[str]()

    def made(attempt: Attempt) -> Outcome:
        stdout.print(f"{model.name}: {attempt.name}")
        if attempt.method in late:
            return Outcome(why_not=f"not tried, since another size took over {limit_secs:.0f} s")
        outcome = run_once(attempt, work, venvs=options.venvs, limit_secs=limit_secs)
        if attempt.venv and outcome.wall_secs >= limit_secs:
            late.add(attempt.method)
        return outcome

    def made_of(runs: Sequence[Attempt]) -> Iterator[tuple[Row, Path | None]]:
        """Each result's row and folder; a run that goes on from another's result comes late."""
        with ThreadPoolExecutor(options.at_once) as pool:
            for part in (False, True):
                now = [each for each in runs if each.goes_on == part]
                for attempt, outcome in zip(now, pool.map(made, now), strict=True):
                    yield from results_of(attempt, outcome, work / attempt.slug, model)

    with open_model(str(model)) as (_, quantizer):
        windows, held_out, *others = windows_of(quantizer, options)
        peers = attempts(model, **save_text(windows, model, work), targets=targets, full=full)
        left_out = options.without.split(",")
        peers = [each for each in peers if each.method not in left_out]

        texts = {"calibration": options.calibration, "evaluation": options.eval}
        efforts = ("max", "normal", "fast") if full else ("normal", "fast")
        if options.targets:  # each size in a run of its own, whose time is that of one size
            sizes = [[target] for target in targets]
            mine = [ours(model, **texts, targets=t, effort=e) for e in efforts for t in sizes]
            found = [*made_of([*mine, *peers])]
        else:
            found = [*made_of(peers)]
            equal = sorted({*targets, *equal_sizes([row for row, _ in found])})
            # Polishing tries plans on the whole model, size by size: three show its effect.
            at_effort = {effort: FEW_TARGETS if effort == "max" else equal for effort in efforts}
            found += made_of(
                [ours(model, **texts, targets=t, effort=e) for e, t in at_effort.items()]
            )
        rows = [row for row, _ in found]
        folders = {f"{r.method} {r.setting}": folder for r, folder in found if folder is not None}
        rows, original = judged(quantizer, [held_out, *others], rows, folders)
    return {
        "model": model.name,
        "form": "full" if full else "short",
        "command": command(sys.argv[1:]),
        "at_once": options.at_once,
        "revision": revision(),
        "versions": tool_versions(),
        "calibration": text_to_json(windows.facts),
        "evaluation": text_to_json(held_out.facts),
        "elsewhere": [text_to_json(each.facts) for each in others],
        "original": asdict(original),
        "rows": [asdict(row) for row in rows],
        "bars": list(bars(rows)),
    }


def windows_of(quantizer: MlxQuantizer, options: argparse.Namespace) -> list[Windows]:
    """Windows to calibrate on, to judge by, and to judge by elsewhere."""
    texts, recipe = open_texts(), Recipe(targets_bpw=(), effort="max")
    windows = quantizer.calibration_windows(
        texts.open(options.calibration),
        recipe.calibration_tokens,
        num_fitting_tokens=recipe.fitting_tokens,
    )
    num_tokens = EVALUATION_TOKENS if options.full else FEW_EVALUATION_TOKENS
    found = [windows]
    for name in (options.eval, *filter(None, options.elsewhere.split(","))):
        text = texts.open(name)
        found.append(quantizer.evaluation_windows(text, options.eval_tokens or num_tokens))
        found[-1].check_disjoint(windows)
    return found


def save_text(windows: Windows, model: Path, work: Path) -> dict[str, Path]:
    """The calibration windows for tools that take tokens, that take text, and that train."""
    tokens, documents, fitting = (
        work / name for name in (TOKENS, "calibration.jsonl", "fitting.npy")
    )
    np.save(tokens, windows.tokens)
    np.save(fitting, np.concatenate([windows.tokens, windows.more]))
    tokenizer = open_tokenizer(model)
    with documents.open("w", encoding="utf-8") as file:
        for window in windows.tokens.tolist():
            file.write(json.dumps({"text": tokenizer.decode(window)}) + "\n")
    # Text that is cut at a window's ends may come back a few tokens shorter.
    num_windows, num_tokens = windows.tokens.shape
    shape = {"windows": num_windows, "tokens": num_tokens * 15 // 16}
    documents.with_suffix(".json").write_text(json.dumps(shape))
    return {"tokens": tokens, "documents": documents, "fitting": fitting}


def run_once(attempt: Attempt, work: Path, *, venvs: Path, limit_secs: float) -> Outcome:
    """Run, or reuse an earlier run of the same command with the same software and tokens.

    Failures are tried again, except those by the time limit.
    """
    out = work / attempt.slug
    note = out.with_name(f"{out.name}.outcome.json")
    software = list(REQUIREMENTS[attempt.venv]) if attempt.venv else [revision()]
    made = {
        "command": list(attempt.command),
        "software": software,
        "tokens": hashlib.sha256((work / TOKENS).read_bytes()).hexdigest(),
        "limit_secs": limit_secs,
    }
    if note.exists() and not software[0].endswith(("-dirty", NO_CHECKOUT)):
        kept = json.loads(note.read_text())
        before = Outcome(**kept["outcome"])
        if kept["made"] == made and (not before.why_not or before.wall_secs >= limit_secs):
            return before
    shutil.rmtree(out, ignore_errors=True)
    outcome = run(attempt, out, venvs=venvs, limit_secs=limit_secs)
    note.write_text(json.dumps({"made": made, "outcome": asdict(outcome)}))
    return outcome


def model_folder(out: Path) -> Path:
    """The folder of the weights below `out`."""
    return min(out.rglob("*.safetensors"), key=lambda file: len(file.parts)).parent


def results_of(
    attempt: Attempt, outcome: Outcome, out: Path, model: Path
) -> Iterator[tuple[Row, Path | None]]:
    """The rows of one run, without figures, and their folders; of ours one for each size."""
    if outcome.why_not:
        yield row_of(attempt, outcome, None, model), None
    elif not attempt.sizes:
        yield row_of(attempt, outcome, folder := model_folder(out), model), folder
    else:
        folders = {file.parent for file in out.rglob("*.safetensors")}
        found = {float(re.findall(r"-([\d.]+)bpw", each.name)[-1]): each for each in folders}
        for size in attempt.sizes:
            folder = min(found.items(), key=lambda pair: abs(pair[0] - size))[1]
            one = replace(attempt, setting=f"{attempt.setting}, {size:g}", target_bpw=size)
            yield row_of(one, outcome, folder, model, num_results=len(attempt.sizes)), folder


def row_of(
    attempt: Attempt, outcome: Outcome, folder: Path | None, model: Path, *, num_results: int = 1
) -> Row:
    """A row without figures."""
    return Row(
        method=attempt.method,
        setting=attempt.setting,
        target_bpw=attempt.target_bpw,
        stored_bpw=None if folder is None else stored_bpw(folder, model),
        num_results=num_results,
        **asdict(outcome),
    )


def equal_sizes(rows: Sequence[Row]) -> Iterator[float]:
    """Sizes that `mlx_lm.dynamic_quant` stored, which differ from the requested ones."""
    for row in rows:
        if row.method != "mlx_lm.dynamic_quant" or not row.stored_bpw or not row.target_bpw:
            continue
        if abs(row.stored_bpw - row.target_bpw) > EQUAL_BPW:
            yield round(row.stored_bpw, 3)


def judged(
    quantizer: MlxQuantizer,
    texts: Sequence[Windows],
    rows: Sequence[Row],
    folders: Mapping[str, Path],
) -> tuple[list[Row], Quality]:
    """The rows with their figures on each text, and the original's on the first, a pass each."""
    refused = {}
    for name, folder in folders.items():
        try:
            open_folder(folder, dequantize=True)
        except DynquantError as error:  # some write what mlx-lm cannot load
            refused[name] = str(error)
    sound = {name: folder for name, folder in folders.items() if name not in refused}
    with ConsoleProgress().track({"evaluate": len(texts) * quantizer.num_blocks}) as on_step:
        (original, found), *others = [
            quantizer.evaluate(sound, {}, windows, on_step=on_step) for windows in texts
        ]
    names = [f"{row.method} {row.setting}" for row in rows]
    return [
        replace(
            row,
            quality=found.get(name),
            elsewhere={
                windows.facts.name: figures[name]
                for windows, (_, figures) in zip(texts[1:], others, strict=True)
                if name in figures
            },
            why_not=refused.get(name, row.why_not),
        )
        for row, name in zip(rows, names, strict=True)
    ], original


def bars(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Mean KL of dynquant over that of the peers of the same size, and the goals."""
    known = [row for row in rows if row.quality is not None and row.stored_bpw is not None]
    mine = [row for row in known if row.method == "dynquant" and row.setting.startswith("normal")]
    for row in mine:
        same = [
            other
            for other in known
            if other.method != "dynquant" and abs(_bpw(other) - _bpw(row)) <= EQUAL_BPW
        ]
        dynamic = [other for other in same if other.method == "mlx_lm.dynamic_quant"]
        best = min(same, key=_kl, default=None)
        bar = min(BARS.items(), key=lambda pair: abs(pair[0] - _bpw(row)))
        near = abs(bar[0] - _bpw(row)) < 0.25
        for other, limit in (
            (min(dynamic, key=_kl, default=None), bar[1] if near else None),
            (best, BEST_PEER_BAR),
        ):
            if other is None or limit is None:
                continue
            ratio = _kl(row) / _kl(other)
            yield {
                "stored_bpw": _bpw(row),
                "peer": f"{other.method} {other.setting}",
                "ratio": ratio,
                "bar": limit,
                "met": ratio <= limit,
            }


def command(words: Sequence[str]) -> str:
    """The command that runs this again from the top of a checkout, on any machine."""
    return " ".join(["python -m benchmarks.quality", *words]).replace(f"{ROOT.parent}/", "../")


def revision() -> str:
    """Commit of this checkout, and whether files other than results are changed."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    changed = _git("status", "--porcelain", "--", ".", ":(exclude)benchmarks/results")
    return commit + "-dirty" * bool(changed) if commit else NO_CHECKOUT


def _git(*words: str) -> str:
    """The output of git; empty outside a checkout."""
    found = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def machine() -> str:
    """Processor, cores and system, and the device that MLX takes."""
    found = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}"
    info = mx.device_info() if mx.default_device() != mx.cpu else {}
    return f"{found}, {info['device_name']}" if "device_name" in info else found


def _bpw(row: Row) -> float:
    assert row.stored_bpw is not None
    return row.stored_bpw


def _kl(row: Row) -> float:
    assert row.quality is not None
    return row.quality.mean_kl_nats


if __name__ == "__main__":
    sys.exit(main())
