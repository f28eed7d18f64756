"""NVIDIA GPUs of this machine: what their driver says, and whether MLX's kernels run on them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynquant.report.numbers import size
from dynquant.runner.machine import run_quietly
from dynquant.sandbox import clean_environment

__all__ = ["Gpu", "gpu_problem", "gpu_sentence", "gpus", "kernel_problem"]

_MIN_DRIVER = 580
"""Of CUDA 13, which the extra `cuda` installs."""

_MIN_CAPABILITY = 7.5
"""Of a T4. MLX has no kernels for older GPUs."""

_COMPILE_SECS = 300.0
"""The first kernels are compiled, which takes up to a minute."""

_QUERY = (
    "nvidia-smi",
    "--query-gpu=name,driver_version,memory.total,memory.free,compute_cap",
    "--format=csv,noheader,nounits",
)

_MULTIPLY = """
import dynquant.quant.mlx
import mlx.core as mx
x, w = (mx.random.normal((64, 256), key=mx.random.key(seed)) for seed in (0, 1))
codes = mx.quantize(w, group_size=64, bits=4)
product = mx.quantized_matmul(x, *codes, group_size=64, bits=4)
curve = mx.compile(lambda y: mx.exp(-y * y) + y)(product)
mx.eval(product, curve)
with mx.stream(mx.cpu):
    right = x @ mx.dequantize(*codes, group_size=64, bits=4).T
    same = mx.allclose(product, right, rtol=1e-2, atol=1e-2)
    same = same & mx.allclose(curve, mx.exp(-product * product) + product, rtol=1e-2, atol=1e-2)
assert same.item(), "a product is wrong"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; `driver` is a version such as `580.159.04`, `capability` CUDA's, such as 9.0."""

    name: str
    driver: str
    memory_bytes: int
    free_bytes: int
    capability: float


def gpus(run: Callable[[Sequence[str]], str] = run_quietly) -> tuple[Gpu, ...]:
    """The NVIDIA GPUs of this machine; none where `nvidia-smi` is missing or fails.

    Args:
        run: Runs a command; returns its output, empty if it fails.
    """
    found = []
    for line in run(_QUERY).splitlines():
        try:
            name, driver, total, free, capability = (part.strip() for part in line.split(","))
            found.append(
                Gpu(
                    name=name,
                    driver=driver,
                    memory_bytes=int(total) << 20,
                    free_bytes=int(free) << 20,
                    capability=float(capability),
                )
            )
        except ValueError:  # "[N/A]", or a message in place of the table
            continue
    return tuple(found)


def gpu_problem(gpu: Gpu, *, mlx_device: str) -> str | None:
    """Why MLX cannot work on a GPU, and what to do; None if nothing is known to hinder it.

    Args:
        gpu: The GPU.
        mlx_device: MLX's default device, `cpu` or `gpu`.
    """
    if gpu.capability < _MIN_CAPABILITY:
        return (
            f"MLX has no kernels for {gpu.name} (compute capability {gpu.capability:g}; it needs "
            f"{_MIN_CAPABILITY:g} or more). Convert on another machine, or on this one's CPU."
        )
    major = gpu.driver.partition(".")[0]
    if not major.isdigit() or int(major) < _MIN_DRIVER:
        return (
            f"The driver {gpu.driver} of {gpu.name} is too old for CUDA 13. Install NVIDIA's "
            f"driver {_MIN_DRIVER} or newer."
        )
    if mlx_device != "gpu":
        return (
            f"This machine has {gpu.name}, and MLX is the build for the CPU. Install the other one "
            "with 'make setup CUDA=1', or 'dynquant[cuda]' in place of 'dynquant[mlx]' in a new "
            "environment."
        )
    return None


def kernel_problem(home: Path) -> str | None:
    """Multiply on MLX's default device, and compare with the CPU; None if the products agree.

    Args:
        home: Home of the process that multiplies: a broken driver may end that process.
    """
    try:
        child = subprocess.run(
            [sys.executable, "-c", _MULTIPLY],
            env=clean_environment(home, {}),
            capture_output=True,
            text=True,
            timeout=_COMPILE_SECS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"MLX's kernels did not end within {_COMPILE_SECS:.0f} seconds."
    if child.returncode == 0:
        return None
    said = child.stderr.strip().splitlines()
    last = said[-1] if said else f"exit code {child.returncode}"
    return f"MLX's kernels do not run here ({last}). Check the driver with 'nvidia-smi'."


def gpu_sentence(found: Sequence[Gpu]) -> str:
    """The first GPU, on which MLX works, in words."""
    first, more = found[0], len(found) - 1
    others = f" MLX works on the first of {more + 1} GPUs." if more else ""
    return (
        f"{first.name}, {size(first.memory_bytes)}, of which {size(first.free_bytes)} are free; "
        f"driver {first.driver}; MLX's kernels run.{others}"
    )
