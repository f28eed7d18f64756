"""A pass over a model that is not in the system's cache, with and without reading ahead.

    python -m benchmarks.reading [--width 2048] [--depth 12] [--tokens 512] [--rounds 5]

A random model is written, its files are dropped from the system's cache, and a forward pass over
all blocks is timed: without and with `ReadAhead`, and once more with the files in memory. The
variants alternate; the shortest time of each counts. Linux only. `reading.json` goes to `--out`.
"""

from __future__ import annotations

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX

# isort: split

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
from rich.table import Table

from benchmarks.quality import ROOT, machine, revision
from benchmarks.random_model import Shape, make_model, num_bytes, random_windows
from dynquant.cli.console import stdout
from dynquant.quant.mlx.loading import ModelFolder, open_model
from dynquant.quant.mlx.readahead import ReadAhead
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights, Forward

CONTEXT = 256
COLD, AHEAD, WARM = "on a cold cache", "on a cold cache, reading ahead", "with all files in memory"


def main() -> int:
    """Print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="where the model may lie")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    if not hasattr(os, "posix_fadvise"):
        stdout.print("This system cannot drop a file from its cache.")
        return 1
    secs: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        make_model(folder, Shape(width=options.width, depth=options.depth, context=CONTEXT))
        model, size = open_model(folder), num_bytes(folder)
        windows = random_windows(options.tokens // CONTEXT, CONTEXT, model.config, seed=0)
        batches = windows.batches()
        for _ in range(options.rounds):
            for name in (COLD, AHEAD, WARM):
                if name != WARM:
                    forget(folder)
                ahead = ReadAhead(folder) if name == AHEAD else lambda _block: None
                taken = pass_secs(model, batches, ahead)
                secs[name] = min(taken, secs.get(name, taken))
    table = Table(f"a pass over {size / 1e9:.2f} GB", "wall (s)")
    for name, taken in secs.items():
        table.add_row(name, f"{taken:.2f}")
    stdout.print(table)
    options.out.mkdir(parents=True, exist_ok=True)
    result = {
        "model_bytes": size,
        "tokens": options.tokens,
        "revision": revision(),
        "machine": machine(),
        "secs": secs,
    }
    (options.out / "reading.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def forget(folder: Path) -> None:
    """Drop the files from the system's cache."""
    os.sync()  # only what is on the disk can be dropped
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pass_secs(
    model: ModelFolder, batches: list[mx.array], read_ahead: Callable[[str], None]
) -> float:
    """Seconds of a forward pass."""
    blocks = BlockModel(model.skeleton, read_ahead)
    forward = Forward(blocks, BlockWeights(blocks, model.lazy_weights), batches)
    started = time.perf_counter()
    for logits in forward.run():
        mx.eval(logits)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
