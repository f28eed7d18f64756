"""Peak memory against depth: it should grow with a block and the activations, not the model.

    python -m benchmarks.memory [--depths 8,16,32,64] [--width 256]

Random Qwen3 models of one width and growing depth are converted in fresh processes, by dynquant
(measure, encode, evaluate) and, for comparison, go through the sensitivity pass of
`mlx_lm.dynamic_quant` on the same tokens in float32. Figures are peaks of MLX's allocator in MB;
`memory.json` and `memory-{light,dark}.svg` go to `--out`.
"""

from __future__ import annotations

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX

# isort: split

import argparse
import json
import sys
import tempfile
from pathlib import Path

import mlx.core as mx
from rich.table import Table

from benchmarks.plot import Point, Series, chart_svg
from benchmarks.random_model import Shape, convert, make_model, num_bytes, random_windows
from benchmarks.upstream import in_child, sensitivity_pass
from dynquant.cli.console import stdout

ROOT = Path(__file__).parents[1]
NUM_WINDOWS, WINDOW_TOKENS, VOCAB = 12, 128, 2048
UPSTREAM = "mlx_lm.dynamic_quant"
COLUMNS = ("weights", "measure", "encode", "evaluate", UPSTREAM)


def main() -> None:
    """Print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", default="8,16,32,64")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--upstream", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        found = upstream_peak(options.child) if options.upstream else our_peaks(options.child)
        sys.stdout.write("\n" + json.dumps(found))
        return
    rows = {}
    for depth in map(int, options.depths.split(",")):
        shape = Shape(width=options.width, depth=depth, vocab=VOCAB, context=WINDOW_TOKENS)
        with tempfile.TemporaryDirectory() as scratch:
            make_model(Path(scratch), shape)
            rows[depth] = {
                "weights": num_bytes(Path(scratch)),
                **in_child("memory", "--child", scratch),
                **in_child("memory", "--child", scratch, "--upstream"),
            }
        stdout.print(depth, rows[depth])
    table = Table("blocks", *COLUMNS)
    for depth, row in rows.items():
        table.add_row(str(depth), *(f"{row[column] / 1e6:.0f}" for column in COLUMNS))
    stdout.print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    result = {"width": options.width, "tokens": NUM_WINDOWS * WINDOW_TOKENS, "peak_bytes": rows}
    (options.out / "memory.json").write_text(json.dumps(result, indent=1) + "\n")
    series = [
        Series(
            name=column,
            points=[Point(x=depth, y=row[column] / 1e6) for depth, row in rows.items()],
            is_ours=column in COLUMNS[1:4],
        )
        for column in COLUMNS
    ]
    for theme in ("light", "dark"):
        picture = chart_svg(
            series,
            heading="Peak memory against depth",
            subtitle=f"random Qwen3 of width {options.width}, "
            f"{NUM_WINDOWS * WINDOW_TOKENS:,} tokens, MLX on the CPU in float32",
            across="blocks",
            upwards="MB",
            dark=theme == "dark",
        )
        (options.out / f"memory-{theme}.svg").write_text(picture)


def our_peaks(folder: Path) -> dict[str, int]:
    """Peak bytes of each step."""
    with tempfile.TemporaryDirectory() as out:
        found = convert(folder, Path(out), num_windows=NUM_WINDOWS, target_bpw=4.5, encoder="gptq")
    peaks: dict[str, int] = found["mlx_peak_bytes"]
    return peaks


def upstream_peak(folder: Path) -> dict[str, int]:
    """Peak bytes of the sensitivity pass of mlx-lm."""
    config = json.loads((folder / "config.json").read_text())
    tokens = random_windows(NUM_WINDOWS, WINDOW_TOKENS, config, seed=0).tokens
    run = sensitivity_pass(folder, mx.array(tokens), wide=True)
    mx.reset_peak_memory()
    run()
    return {UPSTREAM: mx.get_peak_memory()}


if __name__ == "__main__":
    main()
