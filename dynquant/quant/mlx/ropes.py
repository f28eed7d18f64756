"""Whether a model's module uses the parameters of rotary embeddings that its config gives.

For a parameter that mlx-lm's module does not read it silently uses a default, and the model
computes other logits from the first token on. So each number is changed and the modules are built
again: a module that reads the number then holds other constants.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from dynquant.errors import UnsupportedModelError
from dynquant.model.config import rope_values
from dynquant.quant.mlx.runtimes.ports import MODEL_CODE_ERRORS, Runtime

__all__ = ["require_ropes_read"]

_MAX_DEPTH = 3


def require_ropes_read(config: Mapping[str, Any], runtime: Runtime) -> None:
    """Refuse a config whose rotary embeddings the model's module does not build.

    Args:
        config: As its author wrote it.
        runtime: The library that builds the model.

    Raises:
        UnsupportedModelError: A number has no effect; names it.
    """
    values = rope_values(config)
    if not values:
        return
    built = _constants(runtime.build(runtime.spelled(config)))
    bases = [built[key] for key in built if key.endswith(".base")]
    if not bases and not any(key.endswith("freqs") for key in built):
        return  # a model without rotary embeddings, whose config names some even so
    for value in values:
        if value.value in bases:  # either it is read, or it is the only type that the module knows
            continue
        try:
            other = _constants(runtime.build(runtime.spelled(value.changed(config))))
        except MODEL_CODE_ERRORS:  # it is read, and refused
            continue
        if built.keys() == other.keys() and all(_equal(built[key], other[key]) for key in built):
            raise UnsupportedModelError(
                f"config.json says '{value}': {value.value:g}, and {runtime.name}'s module for "
                f"'{str(config.get('model_type'))[:60]}' does not read it there, so it would run "
                f"another model. A newer {runtime.name} may read it; else ask its authors for it."
            )


def _constants(model: nn.Module) -> dict[str, Any]:
    """Place → each number or array of the modules that is not a parameter."""
    found: dict[str, Any] = {}
    for path, module in model.named_modules():
        named = [f"{path}.{type(module).__name__}.{key}" for key in vars(module)]
        for name, value in zip(named, vars(module).values(), strict=True):
            found.update(_numbers(name, value, _MAX_DEPTH))
        for key, value in module.items():
            if key.startswith("_"):
                found.update(_numbers(f"{path}.{type(module).__name__}.{key}", value, _MAX_DEPTH))
    return found


def _numbers(name: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, bool | int | float | str | mx.array):
        yield name, value
    elif depth and isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _numbers(f"{name}.{index}", each, depth - 1)
    elif (
        depth
        and hasattr(value, "__dict__")
        and not callable(value)
        # The arguments hold the values of the config, whether or not a module uses them.
        and not dataclasses.is_dataclass(value)
        and not isinstance(value, nn.Module)
    ):
        for key, each in vars(value).items():
            yield from _numbers(f"{name}.{key}", each, depth - 1)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, mx.array) and isinstance(other, mx.array):
        return np.array_equal(np.asarray(one), np.asarray(other), equal_nan=True)
    return type(one) is type(other) and bool(one == other)
