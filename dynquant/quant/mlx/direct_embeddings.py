"""Embeddings that a model multiplies by itself, and that must therefore stay unpacked.

A quantized embedding can be looked up and, where it is the output head too, be multiplied by its
`as_linear`. Some modules of mlx-lm take its `weight` instead, which is then a matrix of packed
codes: stock mlx-lm ends with an error, or multiplies the codes.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from dynquant.quant.mlx.parameters import clear_parameters, set_parameter
from dynquant.quant.mlx.stock import MODEL_CODE_ERRORS, Weights

__all__ = ["used_directly"]


class _Packed:
    """An embedding that does what a quantized one does, and has no `weight` to multiply by."""

    def __init__(self, embedding: Any) -> None:
        self._embedding = embedding

    def __call__(self, tokens: mx.array) -> Any:
        return self._embedding(tokens)

    def as_linear(self, x: mx.array) -> Any:
        return self._embedding.as_linear(x)


def used_directly(model: nn.Module, weights: Weights) -> set[str]:
    """Paths of the embeddings whose `weight` the model takes; nothing is evaluated.

    Args:
        model: Its modules; they keep no parameters afterwards.
        weights: Path → array, not yet read.
    """
    embeddings = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and hasattr(module, "to_quantized")
    }
    for path, array in weights.items():
        set_parameter(model, path, array)
    try:
        return {
            path
            for path, module in embeddings.items()
            if _runs(model) and not _runs_with(model, path, module)
        }
    finally:
        clear_parameters(model)


def _runs_with(model: nn.Module, path: str, embedding: nn.Module) -> bool:
    set_parameter(model, path, _Packed(embedding))
    try:
        return _runs(model)
    finally:
        set_parameter(model, path, embedding)


def _runs(model: nn.Module) -> bool:
    try:
        model(mx.zeros((1, 2), mx.int32))
    except MODEL_CODE_ERRORS:
        return False
    return True
