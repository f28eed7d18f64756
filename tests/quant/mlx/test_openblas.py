"""The OpenBLAS that `make setup` puts before MLX on Linux."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dynquant.quant.mlx import HAS_FAST_BLAS, SETUP_OPENBLAS, slow_blas_sentence

lief = pytest.importorskip("lief", reason="only Linux needs an OpenBLAS for MLX")
scipy_openblas32 = pytest.importorskip("scipy_openblas32")

from scripts import openblas_for_mlx  # noqa: E402  it imports lief

WITHOUT = """
import ctypes
def missing(*args, **options):
    raise OSError("no such library")
real, ctypes.CDLL = ctypes.CDLL, missing
import dynquant.quant.mlx as backend
ctypes.CDLL = real
import mlx.core as mx
mx.set_default_device(mx.cpu)
print(backend.HAS_FAST_BLAS, backend.FAST_BLAS)
print(backend.slow_blas_sentence())
"""

TOGETHER = """
import sys
from pathlib import Path
import dynquant.quant.mlx as backend
assert backend.FAST_BLAS == sys.argv[1]
import mlx.core as mx
import numpy as np
mx.set_default_device(mx.cpu)
rows = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
square = rows.T @ rows + np.eye(64, dtype=np.float32)
for solve in ("inv", "cholesky", "pinv"):
    ours = np.array(getattr(mx.linalg, solve)(mx.array(square)))
    theirs = getattr(np.linalg, solve)(square.astype(np.float64))
    np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-2)
values = np.array(mx.linalg.svd(mx.array(square))[1])
np.testing.assert_allclose(values, np.linalg.svd(square.astype(np.float64))[1], rtol=1e-3)
q, r = np.linalg.qr(rows.astype(np.float64))
np.testing.assert_allclose(q @ r, rows, atol=1e-9)
with backend.blas_shared_by(2):
    pass
"""


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_only_functions_that_mlx_calls_keep_their_names(tmp_path):
    copy = tmp_path / "libopenblas.so"
    library = Path(scipy_openblas32.get_lib_dir(), "libscipy_openblas.so")
    openblas_for_mlx.rename(library, copy, called=frozenset({"cblas_sgemm", "spotrf_", "malloc"}))
    renamed = lief.ELF.parse(copy)
    exported = {str(each.name) for each in renamed.dynamic_symbols if each.exported}
    assert {each for each in exported if not each.startswith("scipy_")} == {
        "cblas_sgemm",
        "spotrf_",
    }
    assert "scipy_cblas_dgemm" in exported
    # Functions of other libraries keep their names.
    imported = {str(each.name) for each in renamed.imported_symbols}
    assert imported == openblas_for_mlx.imported_names(library)


@pytest.mark.skipif(not SETUP_OPENBLAS.exists(), reason="'make setup' makes it on Linux")
def test_mlx_and_numpy_each_compute_with_their_own_openblas():
    run(TOGETHER, str(SETUP_OPENBLAS))


def test_without_openblas_one_sentence_says_what_to_install():
    found, sentence = run(WITHOUT).splitlines()
    assert found == "False None"
    assert "apt-get install libopenblas0-pthread" in sentence


@pytest.mark.skipif(not HAS_FAST_BLAS, reason="this machine has no OpenBLAS")
def test_with_a_fast_blas_nothing_is_said():
    assert slow_blas_sentence() is None
