"""Quality at equal size: uniform, `mlx_lm.dynamic_quant` and dynquant, side by side in one run.

    python benchmarks/quality.py [--model DIR] [--calibration FILE] [--eval FILE] [--out DIR]

Upstream's own functions run for real: sensitivities, threshold, `quantize_model`, save. It gets
the same calibration tokens as dynquant (and computes in float32, as dynquant does on a CPU).
dynquant's target is the size that upstream stored, so that the two are compared at equal size.
All folders are evaluated in one pass over the same held-out windows. The figures go to
`benchmarks/results/quality.json`. The exit code says whether the bars were met.
"""

from __future__ import annotations

import dynquant.mlx_backend  # noqa: F401  OpenBLAS before MLX

# isort: split

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.quant.dynamic_quant import estimate_sensitivities, estimate_threshold
from mlx_lm.utils import compute_bits_per_weight, load, quantize_model, save

from dynquant.console import ConsoleProgress, print_quality, stdout
from dynquant.core.formats import DEFAULT_MENU, QuantFormat
from dynquant.core.uniform import nearest_uniform
from dynquant.mlx_backend.calibration import Windows
from dynquant.mlx_backend.quantizer import MlxQuantizer, tool_versions
from dynquant.outputs import OutputFolders
from dynquant.pipeline import Recipe, quantize
from dynquant.runner.opening import open_model, open_texts

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
GROUP_SIZE = 64


@dataclass(frozen=True)
class Pair:
    """A target of upstream: two widths, and the share of its KL that ours may have."""

    target_bpw: float
    low_bits: int
    high_bits: int
    bar: float | None


PAIRS = (Pair(3.0, 2, 4, None), Pair(4.0, 3, 4, 0.75), Pair(5.0, 4, 5, 0.65))


def main() -> int:
    """Run the benchmark; 0 when every bar is met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "tiny-qwen3")
    parser.add_argument("--calibration", type=Path, default=SHARED / "text" / "calibration.txt")
    parser.add_argument("--eval", type=Path, default=SHARED / "text" / "heldout.txt")
    parser.add_argument("--eval-tokens", type=int, default=12_288)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if not options.model.is_dir():
        stdout.print(f"There is no model at {options.model}; pass --model, --calibration, --eval.")
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        result = run(options, Path(scratch))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"quality-{options.model.name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    stdout.print(f"Wrote {path}")
    return 0 if all(row["met"] in (True, None) for row in result["ratios"]) else 1


def run(options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """All models made, evaluated and compared."""
    texts, recipe = open_texts(), Recipe(targets_bpw=())
    calibration, evaluation = texts.open(str(options.calibration)), texts.open(str(options.eval))
    with open_model(str(options.model)) as (source, quantizer):
        windows = quantizer.calibration_windows(calibration, recipe.calibration_tokens)
        held_out = quantizer.evaluation_windows(evaluation, options.eval_tokens)
        held_out.check_disjoint(windows)
        folders: dict[str, Path] = {}
        stored: dict[float, float] = {}
        seconds: dict[str, float] = {}
        for pair in PAIRS:
            name = f"dynamic_quant {pair.low_bits}/{pair.high_bits}"
            started = time.perf_counter()
            folders[name] = scratch / name.replace("/", "-").replace(" ", "-")
            stored[pair.target_bpw] = upstream(options.model, folders[name], pair, windows)
            seconds[name] = time.perf_counter() - started
            stdout.print(f"{name}: {stored[pair.target_bpw]:.4f} bits per weight stored")
        started = time.perf_counter()
        ours = quantize(
            source,
            quantizer,
            Recipe(targets_bpw=tuple(stored.values()), evaluation_tokens=options.eval_tokens),
            calibration=calibration,
            evaluation=evaluation,
            outputs=OutputFolders(scratch / "ours"),
            progress=ConsoleProgress(),
        )
        seconds["dynquant, three targets with figures and cards"] = time.perf_counter() - started
        folders |= {each.facts.name: each.folder for each in ours}
        names = [each.facts.name for each in ours]
        return compared(quantizer, held_out, folders, ours=names) | {
            "command": f"python benchmarks/quality.py --model {source.name}",
            "seconds": seconds,
        }


def upstream(model: Path, folder: Path, pair: Pair, windows: Windows) -> float:
    """What `python -m mlx_lm.quant.dynamic_quant` does, on our tokens; stored bits per weight."""
    options: dict[str, Any] = {
        "low_bits": pair.low_bits,
        "low_group_size": GROUP_SIZE,
        "high_bits": pair.high_bits,
        "high_group_size": GROUP_SIZE,
    }
    precise, *_ = load(str(model))
    precise.update(tree_map(lambda p: p.astype(mx.float32), precise.parameters()))
    sensitivities = dict(estimate_sensitivities(precise, mx.array(windows.tokens), **options))
    del precise
    network, tokenizer, *rest = load(str(model), return_config=True)
    config = rest[0]
    threshold = estimate_threshold(network, sensitivities, target_bpw=pair.target_bpw, **options)

    def predicate(path: str, module: object) -> bool | dict[str, int]:
        if not hasattr(module, "to_quantized"):
            return False
        if sensitivities[path] > threshold:
            return {"bits": pair.high_bits, "group_size": GROUP_SIZE}
        return True

    network, config = quantize_model(
        network, config, group_size=GROUP_SIZE, bits=pair.low_bits, quant_predicate=predicate
    )
    bits_per_weight = float(compute_bits_per_weight(network))
    save(str(folder), str(model), network, tokenizer, config, donate_model=True)
    return bits_per_weight


def compared(
    quantizer: MlxQuantizer, held_out: Windows, folders: dict[str, Path], *, ours: Sequence[str]
) -> dict[str, Any]:
    """One evaluation pass over everything, the table, and the ratios."""
    full = quantizer.inventory(DEFAULT_MENU)
    formats: dict[str, QuantFormat] = {}
    uniform = {}
    for pair in PAIRS:
        fmt, plan = nearest_uniform(full, pair.target_bpw)
        formats[f"uniform {fmt.name}"] = fmt
        uniform[f"uniform {fmt.name}"] = plan
    with ConsoleProgress().track({"evaluate": quantizer.num_blocks}) as on_step:
        original, found = quantizer.evaluate(folders, uniform, held_out, on_step=on_step)
    sizes = {name: plan.stored_bpw for name, plan in uniform.items()}
    for name, folder in folders.items():
        network, *_ = load(str(folder), lazy=True)
        sizes[name] = float(compute_bits_per_weight(network))
    order = sorted(found, key=lambda name: (round(sizes[name]), -found[name].mean_kl_nats))
    print_quality([("original", full.max_bpw, None, original)])
    print_quality([(name, sizes[name], None, found[name]) for name in order])
    ratios = []
    for pair, name in zip(PAIRS, ours, strict=True):
        theirs = f"dynamic_quant {pair.low_bits}/{pair.high_bits}"
        ratio = found[name].mean_kl_nats / found[theirs].mean_kl_nats
        met = None if pair.bar is None else ratio <= pair.bar
        ratios.append({"target_bpw": pair.target_bpw, "ratio": ratio, "bar": pair.bar, "met": met})
        bar = "" if pair.bar is None else f" (bar {pair.bar}: {'met' if met else 'MISSED'})"
        stdout.print(f"at {sizes[theirs]:.3f} BPW ours has {ratio:.3f} of upstream's mean KL{bar}")
    return {
        "versions": tool_versions(),
        "evaluation": asdict(held_out.facts),
        "rows": {name: {"stored_bpw": sizes[name], **asdict(found[name])} for name in order},
        "original": asdict(original),
        "ratios": ratios,
    }


if __name__ == "__main__":
    sys.exit(main())
