"""Time and memory of measuring, beside the sensitivity pass of `mlx_lm.dynamic_quant`.

    python -m benchmarks.measuring [--models DIR,DIR] [--rounds 2] [--out DIR]

Upstream's own `estimate_sensitivities` (one pair of widths) and dynquant's measuring (every
format) run alternately on the same calibration windows, each in a fresh process, in float32 on a
CPU. Of several rounds the smallest figure counts; memory is the peak of MLX's allocator. The second
size is the cost that another target adds to the encoding pass. `measuring-MODEL.json` goes to
`--out`; the exit code is 0 if the goals are met.
"""

from __future__ import annotations

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX

# isort: split

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
from rich.table import Table

from benchmarks.quality import MODELS, ROOT, SHARED, machine, revision
from benchmarks.upstream import in_child, sensitivity_pass
from dynquant.cli.console import stdout
from dynquant.cli.wiring import open_model, open_texts
from dynquant.quant.allocate import allocate
from dynquant.quant.recipe import EFFORTS, Recipe

CALIBRATION = SHARED / "text" / "calibration.txt"
UPSTREAM, MEASURE, PROBES = "mlx_lm.dynamic_quant, sensitivities", "measure", "measure and probe"
ALLOCATE, ENCODE, SECOND = "allocate", "encode one size", "encode a second size too"
BARS, PEAK_BAR = {MEASURE: 0.5, "second size": 0.1}, 0.5
TIMES = ("wall", "cpu")


def main() -> int:
    """Print and store the table; 0 when the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help="folders, with commas")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", choices=("upstream", "ours"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    models = [Path(m) for m in options.models.split(",")] if options.models else [MODELS[0]]
    if options.child:
        found = (upstream_secs if options.child == "upstream" else our_secs)(models[0])
        sys.stdout.write("\n" + json.dumps(found))
        return 0
    met = True
    for model in models:
        secs: dict[str, dict[str, float]] = {}
        for _ in range(options.rounds):
            for who in ("upstream", "ours"):
                for step, taken in in_child(
                    "measuring", "--child", who, "--models", str(model)
                ).items():
                    best = secs.setdefault(step, taken)
                    secs[step] = {kind: min(best[kind], taken[kind]) for kind in taken}
        ratios = ratios_of(secs)
        options.out.mkdir(parents=True, exist_ok=True)
        result = {
            "model": model.name,
            "revision": revision(),
            "machine": machine(),
            "secs": secs,
            "ratios": ratios,
        }
        name = f"measuring-{model.name}.json"
        (options.out / name).write_text(json.dumps(result, indent=1) + "\n")
        show(model.name, secs, ratios)
        met = met and all(ratios[name]["wall"] <= bar for name, bar in BARS.items())
        met = met and all(ratios[name]["peak_bytes"] <= PEAK_BAR for name in (MEASURE, PROBES))
    return 0 if met else 1


def ratios_of(secs: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Measuring over upstream's pass, and the addition of a second size over the whole first."""
    upstream = secs[UPSTREAM]
    first = {k: secs[PROBES][k] + secs[ALLOCATE][k] + secs[ENCODE][k] for k in TIMES}
    second = {k: secs[ALLOCATE][k] + secs[SECOND][k] - secs[ENCODE][k] for k in TIMES}
    return {
        MEASURE: {k: secs[MEASURE][k] / upstream[k] for k in upstream},
        PROBES: {k: secs[PROBES][k] / upstream[k] for k in upstream},
        "second size": {k: second[k] / first[k] for k in TIMES},
    }


def show(
    model: str, secs: dict[str, dict[str, float]], ratios: dict[str, dict[str, float]]
) -> None:
    """The tables of one model."""
    table = Table(model, "wall (s)", "CPU (s)", "memory (MB)")
    for step, taken in secs.items():
        peak = f"{taken['peak_bytes'] / 1e6:.0f}"
        table.add_row(step, f"{taken['wall']:.2f}", f"{taken['cpu']:.2f}", peak)
    stdout.print(table)
    table = Table("ratio", "wall", "CPU", "bar", "memory", "bar")
    for name, ratio in ratios.items():
        bar = f"{BARS[name]:g}" if name in BARS else ""
        peak = f"{ratio['peak_bytes']:.2f}" if "peak_bytes" in ratio else ""
        peak_bar = f"{PEAK_BAR:g}" if "peak_bytes" in ratio else ""
        table.add_row(name, f"{ratio['wall']:.2f}", f"{ratio['cpu']:.2f}", bar, peak, peak_bar)
    stdout.print(table)


@contextmanager
def timed(secs: dict[str, dict[str, float]], step: str) -> Iterator[None]:
    """Note time and memory of the context."""
    mx.reset_peak_memory()
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    mx.synchronize()
    secs[step] = {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak_bytes": mx.get_peak_memory(),
    }


def our_secs(model: Path) -> dict[str, dict[str, float]]:
    """Seconds of the steps of dynquant."""
    recipe, secs = Recipe(targets_bpw=()), dict[str, dict[str, float]]()

    def ignore(_step: str, _amount: int = 1) -> None:
        pass

    with open_model(str(model)) as (_, quantizer):
        windows = quantizer.calibration_windows(
            open_texts().open(str(CALIBRATION)), recipe.calibration_tokens
        )
        for step, effort in ((MEASURE, EFFORTS["fast"]), (PROBES, EFFORTS["normal"])):
            with timed(secs, step):
                table = quantizer.measure(
                    windows,
                    menu=recipe.menu,
                    encoder=recipe.encoder,
                    effort=effort,
                    seed=0,
                    on_step=ignore,
                )
        with timed(secs, ALLOCATE):
            plans = [allocate(table.inventory, target_bpw=4.0)]
        plans.append(allocate(table.inventory, target_bpw=5.0))
        for step, chosen in ((ENCODE, plans[:1]), (SECOND, plans)):
            with tempfile.TemporaryDirectory() as scratch:
                folders = {Path(scratch, str(n)): plan for n, plan in enumerate(chosen)}
                for folder in folders:
                    folder.mkdir()
                with timed(secs, step):
                    quantizer.encode(
                        folders,
                        windows,
                        encoder=recipe.encoder,
                        importance=table.importance,
                        on_step=ignore,
                    )
    return secs


def upstream_secs(model: Path) -> dict[str, dict[str, float]]:
    """Seconds of mlx-lm's sensitivity pass on the calibration windows of dynquant."""
    secs: dict[str, dict[str, float]] = {}
    with open_model(str(model)) as (_, quantizer):
        tokens = quantizer.calibration_windows(
            open_texts().open(str(CALIBRATION)), Recipe(targets_bpw=()).calibration_tokens
        ).tokens
    # dynquant keeps the last windows for the probes.
    learned = mx.array(tokens[: Recipe(targets_bpw=()).calibration_tokens // tokens.shape[1]])
    run = sensitivity_pass(model, learned, wide=mx.default_device() == mx.cpu)
    with timed(secs, UPSTREAM):
        run()
    return secs


if __name__ == "__main__":
    sys.exit(main())
