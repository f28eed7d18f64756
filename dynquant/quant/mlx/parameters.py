"""The modules of a model and the arrays in them, by dotted paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

__all__ = [
    "clear_parameters",
    "filled",
    "is_multi_head",
    "is_switch",
    "quantizable",
    "set_parameter",
    "takes_mode",
]


def quantizable(model: nn.Module) -> dict[str, nn.Module]:
    """Path → module of everything that mlx-lm can store quantized, in the model's order."""
    leaves = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    return {path: leaf for path, leaf in leaves if hasattr(leaf, "to_quantized")}


def takes_mode(layer: nn.Module) -> bool:
    """Whether mlx-lm can store `layer` in other modes than `affine`."""
    return "mode" in signature(layer.to_quantized).parameters


def is_switch(layer: type) -> bool:
    """Whether layers of this class are the experts of a mixture, each row going to some of them.

    mlx-lm and mlx-vlm have a `SwitchLinear` of their own each, called alike.
    """
    return "indices" in signature(layer.__call__).parameters


def is_multi_head(layer: type) -> bool:
    """Whether layers of this class hold a matrix for each head, as `MultiLinear` does."""
    return "transpose" in signature(layer.__call__).parameters


def clear_parameters(module: nn.Module) -> None:
    """Replace every parameter of `module` by an empty array, so that its memory is let go."""
    for path, _ in tree_flatten(module.parameters()):
        set_parameter(module, path, mx.array([]))


@contextmanager
def filled(module: nn.Module, weights: Mapping[str, mx.array]) -> Iterator[None]:
    """Put `weights` (path → array) into `module`, and empty arrays again when the block ends."""
    try:
        for path, array in weights.items():
            set_parameter(module, path, array)
        yield
    finally:
        clear_parameters(module)


def set_parameter(module: nn.Module, path: str, value: Any) -> None:
    """Put `value` at the dotted `path` of `module`: an array of any shape, or a module."""
    *parents, name = path.split(".")
    node: Any = module
    for part in parents:
        node = node[int(part)] if isinstance(node, list | tuple) else node[part]
    if isinstance(node, list):
        node[int(name)] = value
    else:
        node[name] = value
