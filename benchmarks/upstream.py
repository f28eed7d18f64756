"""The sensitivity pass of `mlx_lm.dynamic_quant`, and steps in processes of their own."""

from __future__ import annotations

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX

# isort: split

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map
from mlx_lm.quant.dynamic_quant import estimate_sensitivities
from mlx_lm.utils import load_model

__all__ = ["in_child", "sensitivity_pass"]

ROOT = Path(__file__).parents[1]


def sensitivity_pass(folder: Path, tokens: mx.array, *, wide: bool) -> Callable[[], object]:
    """Upstream's own `estimate_sensitivities` for one pair of widths, ready to be called.

    Args:
        folder: The model.
        tokens: Windows, (windows, seq), int32.
        wide: Whether to load its weights in float32.
    """
    model, _ = load_model(folder)
    if wide:
        model.update(tree_map(lambda p: p.astype(mx.float32), model.parameters()))
        mx.eval(model.parameters())
    widths: dict[str, Any] = {"low_bits": 4, "high_bits": 5}
    sizes: dict[str, Any] = {"low_group_size": 64, "high_group_size": 64}
    return lambda: estimate_sensitivities(model, tokens, **widths, **sizes)


def in_child(module: str, *options: str) -> Any:
    """The last line that a benchmark prints as JSON, from a fresh process."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])
