"""Everything that touches MLX and mlx-lm; nothing outside this package imports them.

The Linux wheel of MLX links the reference BLAS, whose matrix products run at
4.6 GFLOP/s where OpenBLAS reaches 190 on the same two cores. Loading OpenBLAS
first puts its `cblas_*` symbols in front, so it must happen before the first
`import mlx.core` of the process.
"""

import ctypes
import sys

__all__ = ["HAS_FAST_BLAS"]


def _preload_openblas() -> bool:
    if not sys.platform.startswith("linux"):
        return True  # macOS has Accelerate
    for name in ("libopenblas.so.0", "libopenblasp.so.0", "libopenblas.so"):
        try:
            ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        except OSError:
            continue
        return True
    return False


HAS_FAST_BLAS = _preload_openblas()
"""Whether float32 matrix products on the CPU run at full speed."""
