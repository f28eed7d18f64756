"""All code that imports MLX or mlx-lm.

The Linux wheel of MLX links the reference BLAS, whose matrix products run at
5 GFLOP/s where OpenBLAS reaches 90 on the same two cores. Loading OpenBLAS
first puts its `cblas_*` symbols in front, so it must happen before the first
`import mlx.core` of the process. `make setup` puts an OpenBLAS into the environment
(scripts/openblas_for_mlx.py); without it the system's is taken.

On some GPUs MLX multiplies float32 matrices in TF32, with ten bits of mantissa. The Cholesky
factors of GPTQ need more, so TF32 is switched off, before MLX reads the variable.

On a CPU `mx.compile` starts g++ for every function of a model, a second each, again in every
process, since processes that run a stranger's files share no compiled code. A model is no faster
for it, so functions are not compiled there (decision 0030).
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "FAST_BLAS",
    "HAS_FAST_BLAS",
    "SETUP_OPENBLAS",
    "blas_shared_by",
    "slow_blas_sentence",
]

SETUP_OPENBLAS = Path(sys.prefix, "lib", "dynquant", "libopenblas.so")
"""The OpenBLAS of this environment, made by `make setup` on Linux."""

_SYSTEM_OPENBLAS = ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so")


def _preload_openblas() -> tuple[ctypes.CDLL, str] | tuple[None, None]:
    if not sys.platform.startswith("linux"):
        return None, None  # macOS has Accelerate
    for name in (str(SETUP_OPENBLAS), *_SYSTEM_OPENBLAS):
        try:
            return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL), name
        except OSError:
            continue
    return None, None


_OPENBLAS, FAST_BLAS = _preload_openblas()
"""The library that was loaded, and its name or path as LD_PRELOAD takes it."""

os.environ.setdefault("MLX_ENABLE_TF32", "0")
# As mlx-lm does: transformers warns at its import that there is no PyTorch, which is not used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import mlx.core as mx

_ON_CPU = mx.default_device() == mx.Device(mx.cpu)
if _ON_CPU:
    mx.disable_compile()

HAS_FAST_BLAS = _OPENBLAS is not None or not sys.platform.startswith("linux")
"""Whether float32 matrix products on the CPU run at full speed."""


def slow_blas_sentence() -> str | None:
    """Advice to install a BLAS where matrix products run on a CPU without one; None elsewhere."""
    if HAS_FAST_BLAS or not _ON_CPU:
        return None
    return (
        "MLX finds no OpenBLAS on this machine. With it, dynquant is 5 to 10 times faster on this "
        "CPU: on Debian and Ubuntu 'sudo apt-get install libopenblas0-pthread'."
    )


@contextmanager
def blas_shared_by(callers: int) -> Iterator[None]:
    """Divide OpenBLAS's threads between so many callers; otherwise one waits for the other."""
    if _OPENBLAS is None:
        yield
        return
    threads = _OPENBLAS.openblas_get_num_threads()
    _OPENBLAS.openblas_set_num_threads(max(1, threads // callers))
    try:
        yield
    finally:
        _OPENBLAS.openblas_set_num_threads(threads)
