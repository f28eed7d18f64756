"""Everything that touches MLX and mlx-lm; nothing outside this package imports them.

The Linux wheel of MLX links the reference BLAS, whose matrix products run at
4.6 GFLOP/s where OpenBLAS reaches 190 on the same two cores. Loading OpenBLAS
first puts its `cblas_*` symbols in front, so it must happen before the first
`import mlx.core` of the process.

On some GPUs MLX multiplies float32 matrices in TF32, with ten bits of mantissa. What is
factored must be more exact than that, so it is switched off, before MLX looks.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["HAS_FAST_BLAS", "blas_shared_by"]


def _preload_openblas() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None  # macOS has Accelerate
    for name in ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so"):
        try:
            return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
    return None


_OPENBLAS = _preload_openblas()
os.environ.setdefault("MLX_ENABLE_TF32", "0")
HAS_FAST_BLAS = _OPENBLAS is not None or not sys.platform.startswith("linux")
"""Whether float32 matrix products on the CPU run at full speed."""


@contextmanager
def blas_shared_by(callers: int) -> Iterator[None]:
    """OpenBLAS gives each of so many callers its part of the threads; else they wait in line."""
    if _OPENBLAS is None:
        yield
        return
    threads = _OPENBLAS.openblas_get_num_threads()
    _OPENBLAS.openblas_set_num_threads(max(1, threads // callers))
    try:
        yield
    finally:
        _OPENBLAS.openblas_set_num_threads(threads)
