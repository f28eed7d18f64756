"""Give this environment an OpenBLAS that MLX can use: no root, no compiler. Linux only.

MLX's wheel for Linux calls `cblas_sgemm` and brings the reference implementation of it. OpenBLAS
is on the package index as `scipy-openblas32`, the build inside scipy's own wheels; its names start
with `scipy_`, so that it can share a process with other builds. This script writes a copy in which
the functions that MLX calls have their usual names, and every other name starts with `scipy_`.
`dynquant.quant.mlx` loads the copy before MLX. See docs/decisions/0019-a-blas-without-root.md.

The copy is kept only if a fresh process multiplies with it and gets the right product.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import lief  # Linux only

from dynquant.quant.mlx import SETUP_OPENBLAS

PREFIX = "scipy_"
THREADS = frozenset({"openblas_get_num_threads", "openblas_set_num_threads"})
"""Called by `dynquant.quant.mlx`."""

_MULTIPLY = """
import ctypes, sys
ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)
import mlx.core as mx
import numpy as np
mx.set_default_device(mx.cpu)
left = (np.arange(64 * 48) % 11).astype(np.float32).reshape(64, 48)  # integers: products are exact
square = left.T @ left + 1e4 * np.eye(48, dtype=np.float32)
np.testing.assert_array_equal(np.array(mx.array(left) @ mx.array(left.T)), left @ left.T)
factor = np.array(mx.linalg.cholesky(mx.array(square)))
np.testing.assert_allclose(factor @ factor.T, square, rtol=1e-3)
"""


def main() -> int:
    """Write the copy where it can be made; the exit code says whether MLX has a fast BLAS then."""
    SETUP_OPENBLAS.unlink(missing_ok=True)  # made for another MLX, it may be
    library, mlx = (
        _file_of("scipy_openblas32", "libscipy_openblas.so"),
        _file_of("mlx", "libmlx.so"),
    )
    if library is None or mlx is None:
        return 1
    SETUP_OPENBLAS.parent.mkdir(parents=True, exist_ok=True)
    draft = SETUP_OPENBLAS.with_name("draft.so")
    rename(library, draft, called=imported_names(mlx) | THREADS)
    works = subprocess.run(
        [sys.executable, "-c", _MULTIPLY, str(draft)], capture_output=True, check=False
    )
    if works.returncode != 0:
        draft.unlink()
        return 1
    draft.replace(SETUP_OPENBLAS)
    return 0


def imported_names(library: Path) -> frozenset[str]:
    """Names of the symbols that a shared library takes from other libraries."""
    binary = lief.ELF.parse(library)
    assert binary is not None
    return frozenset(str(each.name) for each in binary.imported_symbols)


def rename(library: Path, copy: Path, *, called: frozenset[str]) -> None:
    """Write a copy of an OpenBLAS with other names.

    Args:
        library: A build of `scipy-openblas32`.
        copy: Where the copy goes.
        called: Functions that lose the prefix. Everything else that is exported gets or keeps it,
            so that no other OpenBLAS of the process binds to it.
    """
    binary = lief.ELF.parse(library)
    assert binary is not None
    for symbol in binary.dynamic_symbols:
        plain = str(symbol.name).removeprefix(PREFIX)
        if not symbol.exported:
            continue
        symbol.name = plain if plain in called else PREFIX + plain
    binary.write(str(copy))


def _file_of(package: str, name: str) -> Path | None:
    found = importlib.util.find_spec(package)
    folders = (found.submodule_search_locations if found else None) or ()
    return next((path for each in folders if (path := Path(each, "lib", name)).is_file()), None)


if __name__ == "__main__":
    sys.exit(main())
