"""A model larger than the memory limit is converted to the end.

    python -m benchmarks.larger_than_memory [--gb 12] [--limit-gb 6] [--depth 24] [--inner 1]

Makes a random model of that size, a block at a time, and converts it in a process of its own under
the limit: a control group where this user may make one (it then counts the page cache too, which
the kernel can free), else a thread that watches the resident memory and ends the process. Without
options the model has 1.5 GB and the limit is two thirds of that: Python, MLX and mlx-lm alone take
0.4 GB. With --limit-gb 0 there is no limit.
"""

from __future__ import annotations

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX

# isort: split

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.random_model import Shape, convert, make_model, num_bytes
from dynquant.cli.console import stdout
from dynquant.quant.recipe import EFFORTS

ROOT = Path(__file__).parents[1]
ATTENTION = 2.5  # weights over the width squared, see Shape.block; the rest is 3 times --inner
GROUP = Path("/sys/fs/cgroup/memory/dynquant-benchmark")  # control groups, version 1
GROUP_2 = Path("/sys/fs/cgroup/dynquant-benchmark")  # version 2


def main() -> int:
    """Print and store time and memory; 0 when the conversion has a result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=1.5)
    parser.add_argument("--limit-gb", type=float)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--inner", type=float, default=3.0, help="of the feed-forward part")
    parser.add_argument("--vocab", type=int, default=2048)
    parser.add_argument("--context", type=int, default=64, help="tokens of a window, at most 512")
    parser.add_argument("--windows", type=int, default=20)
    parser.add_argument("--bpw", type=float, default=4.5)
    parser.add_argument("--encoder", default="gptq")
    parser.add_argument("--effort", choices=EFFORTS, default="fast")
    parser.add_argument("--scratch", type=Path, help="where the model may lie")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        model, folder = options.child
        sys.stdout.write(
            json.dumps(
                convert(
                    model,
                    folder,
                    num_windows=options.windows,
                    target_bpw=options.bpw,
                    encoder=options.encoder,
                    effort=options.effort,
                )
            )
        )
        return 0
    limit = options.gb / 1.5 if options.limit_gb is None else options.limit_gb
    block_weights = options.gb * 1e9 / 2 / options.depth
    per_square = ATTENTION + 3 * options.inner
    width = round((block_weights / per_square) ** 0.5 / 256) * 256
    shape = Shape(
        width=width,
        depth=options.depth,
        inner=options.inner,
        vocab=options.vocab,
        context=options.context,
    )
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        model, folder = Path(scratch, "model"), Path(scratch, "quantized")
        model.mkdir()
        folder.mkdir()
        make_model(model, shape)
        size = num_bytes(model)
        stdout.print(f"{size / 1e9:.2f} GB, {options.depth} blocks of width {width}")
        found = limited(
            ["--child", str(model), str(folder), *sys.argv[1:]], limit_bytes=round(limit * 1e9)
        )
        found |= {"model_bytes": size, "result_bytes": num_bytes(folder)}
    found |= {"width": width, "inner": shape.inner_width, "depth": options.depth}
    found["command"] = " ".join(["python -m benchmarks.larger_than_memory", *sys.argv[1:]])
    options.out.mkdir(parents=True, exist_ok=True)
    name = f"conversion-{size / 1e9:.1f}gb-{found.get('device', 'failed')}.json"
    (options.out / name).write_text(json.dumps(found, indent=1) + "\n")
    stdout.print_json(json.dumps(found))
    return found["exit_code"]


def limited(arguments: list[str], *, limit_bytes: int) -> dict[str, Any]:
    """Run this script again with `arguments`, in at most `limit_bytes` of memory."""
    command = [sys.executable, "-m", "benchmarks.larger_than_memory", *arguments]
    group = control_group(limit_bytes) if limit_bytes else None

    def enter() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        preexec_fn=enter,  # noqa: PLW1509  no other thread runs
        cwd=ROOT,
    )
    process, peak, ended_by_watch = psutil.Process(child.pid), 0, False
    while child.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, process.memory_info().rss)
        if limit_bytes and peak > limit_bytes and not ended_by_watch:
            ended_by_watch = True
            child.kill()
        time.sleep(0.05)
    assert child.stdout is not None
    output = child.stdout.read()
    if group is not None:
        group.rmdir()
    return {
        "exit_code": child.returncode,
        "limit_bytes": limit_bytes,
        "limited_by": "control group and watch" if group else "watch" if limit_bytes else "nothing",
        "watched_peak_bytes": peak,
        **(json.loads(output) if output else {}),
    }


def control_group(limit_bytes: int) -> Path | None:
    """A new control group with this limit; None where this user may not make one."""
    for group, name in ((GROUP, "memory.limit_in_bytes"), (GROUP_2, "memory.max")):
        try:
            group.mkdir(exist_ok=True)
            (group / name).write_text(str(limit_bytes))
        except OSError:
            with suppress(OSError):
                group.rmdir()
            continue
        return group
    return None


if __name__ == "__main__":
    sys.exit(main())
