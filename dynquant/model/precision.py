"""How many bits the numbers of a source have."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from dynquant.model.config import dtype_names
from dynquant.model.quantized_sources import Tensor

__all__ = ["is_float32"]

_NAMES = ("float16", "bfloat16", "float32")


def is_float32(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether a model is in float32: its config says it, or most weights are under a silent one.

    >>> is_float32({"torch_dtype": "float32"}, {})
    True
    >>> is_float32({"dtype": "bfloat16"}, {"norm.weight": Tensor("F32", (64, 1))})
    False
    """
    said = next((name for name in dtype_names(config) if name in _NAMES), None)
    if said is not None:
        return said == "float32"
    sizes = {name: prod(each.shape) for name, each in tensors.items() if len(each.shape) > 1}
    wide = sum(size for name, size in sizes.items() if tensors[name].dtype == "F32")
    return 2 * wide > sum(sizes.values())
