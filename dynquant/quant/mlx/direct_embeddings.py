"""Embeddings whose `weight` a model uses directly, and which must therefore stay unquantized.

A quantized embedding has a lookup and, as an output head, `as_linear`. Some modules of mlx-lm use
its `weight` instead, which in a quantized model is a matrix of packed codes: stock mlx-lm ends with
an error, or multiplies by the codes.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn

from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.parameters import filled, set_parameter
from dynquant.quant.mlx.runtimes.ports import MODEL_CODE_ERRORS

__all__ = ["used_directly"]


class _Packed:
    """An embedding with the methods of a quantized one, whose `weight` cannot be used."""

    def __init__(self, embedding: Any) -> None:
        self._embedding = embedding

    def __call__(self, tokens: mx.array) -> Any:
        return self._embedding(tokens)

    def as_linear(self, x: mx.array) -> Any:
        return self._embedding.as_linear(x)


def used_directly(model: nn.Module, weights: Weights) -> set[str]:
    """Paths of the embeddings whose `weight` the model uses; nothing is evaluated.

    Args:
        model: Its modules; they keep no parameters afterwards.
        weights: Path → array, not yet read.
    """
    embeddings = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Embedding) and hasattr(module, "to_quantized")
    }
    with filled(model, weights):
        return {
            path
            for path, module in embeddings.items()
            if _runs(model) and not _runs_with(model, path, module)
        }


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
