"""Heads that loading overwrites with the embedding's weight, whatever the folder holds for them.

mlx-vlm's Gemma 3 has such a head. Its packed weight would be that of the embedding beside scales of
its own. So the two are one layer here, tied, which is stored under both names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.runtimes.ports import MODEL_CODE_ERRORS, Runtime

__all__ = ["overwritten_heads", "tie", "with_copies"]

_WEIGHT = ".weight"
_HEADS = (nn.Linear, nn.QuantizedLinear)
_EMBEDDINGS = (nn.Embedding, nn.QuantizedEmbedding)


def overwritten_heads(
    model: nn.Module, runtime: Runtime, config: Mapping[str, Any], weights: Weights
) -> dict[str, str]:
    """Path of a head → path of the embedding whose weight loading puts in its place.

    Args:
        model: The model's modules.
        runtime: The library that loads the model.
        config: The model's config.
        weights: Path → array of the loaded model; only shapes count.
    """
    own = {path: mx.zeros(array.shape, array.dtype) for path, array in weights.items()}
    try:
        loaded = runtime.sanitized(config, own)
    except MODEL_CODE_ERRORS:  # the class takes only what comes from the Hub
        return {}
    modules, owners = dict(model.named_modules()), {id(array): path for path, array in own.items()}
    found = {}
    for path, array in loaded.items():
        head, source = path.removesuffix(_WEIGHT), owners.get(id(array), path).removesuffix(_WEIGHT)
        is_head = isinstance(modules.get(head), _HEADS) and "bias" not in modules[head]
        if head != source and is_head and isinstance(modules.get(source), _EMBEDDINGS):
            found[head] = source
    return found


def tie(model: nn.Module, heads: Mapping[str, str]) -> None:
    """Have each head of `model` multiply by its embedding's weight, without one of its own."""
    modules = dict(model.named_modules())
    for head, source in heads.items():
        parent, _, name = head.rpartition(".")
        setattr(modules[parent], name, _TiedHead(modules[source]))


def with_copies(arrays: Weights, heads: Mapping[str, str]) -> Weights:
    """`arrays` of embeddings under the names of their heads, too."""
    copied = {
        f"{head}{name.removeprefix(source)}": array
        for head, source in heads.items()
        for name, array in arrays.items()
        if name.rpartition(".")[0] == source
    }
    return arrays | copied


class _TiedHead:
    """Not a module, so that the weight is there once."""

    def __init__(self, embedding: Any) -> None:
        self._embedding = embedding

    def __call__(self, x: mx.array) -> Any:
        return self._embedding.as_linear(x)
