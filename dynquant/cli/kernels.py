"""Times of matrix products on this machine: measured once, kept in its home, read by `plan`."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

from dynquant.cli import console
from dynquant.errors import DynquantError
from dynquant.quant.kernel_times import KernelTimes
from dynquant.report.outputs import read_text, write_file

__all__ = ["kernel_times_here", "measure_and_keep"]

_FILE = "kernel_times.json"


def measure_and_keep(home: Path) -> KernelTimes:
    """Time the products of all formats, and keep the times in `home`; takes minutes."""
    from dynquant.quant.mlx.kernel_timing import FORMATS, measure_kernels, num_kinds

    with console.ConsoleProgress().track({"kernels": num_kinds(FORMATS)}) as on_step:
        times = measure_kernels(on_kernel=lambda: on_step("kernels"))
    write_file(home / _FILE, json.dumps(times.to_json()) + "\n")
    return times


def kernel_times_here(home: Path, machine: str) -> KernelTimes | None:
    """The times that were kept for this chip, device and version of MLX; None without."""
    try:
        found = KernelTimes.from_json(json.loads(read_text(home / _FILE) or ""))
    except (ValueError, KeyError, TypeError, AttributeError, DynquantError):
        return None
    is_current = (found.machine, found.mlx_version) == (machine, version("mlx"))
    return found if is_current else None
