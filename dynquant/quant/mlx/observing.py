"""Observe the inputs and outputs of quantizable layers while a model runs.

A layer's class is exchanged for one whose call reports `(path, role, x, y)` to an
observer; the model's own code is untouched. Four roles say how a weight acts:

| role       | layer                                | y                                  |
|------------|--------------------------------------|------------------------------------|
| linear     | Linear, Embedding.as_linear          | x @ W.T                            |
| lookup     | Embedding                            | W[ids]                             |
| switch     | SwitchLinear (experts)               | x @ W[expert].T                    |
| heads      | MultiLinear (absorbed MLA matrices)  | x @ W[head].T                      |
| transposed | MultiLinear, `transpose=False`       | x @ W[head]                        |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from dynquant.quant.mlx.parameters import is_multi_head, is_switch

__all__ = ["Observation", "Observer", "Role", "observed", "squares"]


class Role(StrEnum):
    """How a layer's weight acts on its input."""

    LINEAR = "linear"
    LOOKUP = "lookup"
    SWITCH = "switch"
    HEADS = "heads"
    TRANSPOSED = "transposed"


@dataclass(frozen=True)
class Observation:
    """One call of one layer.

    Attributes:
        path: Path of the layer.
        role: How its weight acts in this call.
        x: Input, (..., in); token ids, (...), for a lookup.
        y: Output, (..., out).
        experts: For a switch layer, the expert of each input row, (...).
    """

    path: str
    role: Role
    x: mx.array
    y: mx.array
    experts: mx.array | None = None


Observer = Callable[[Observation], mx.array]
"""Gets an observation, returns the output to go on with."""


@contextmanager
def observed(layers: Mapping[str, nn.Module], observer: Observer) -> Iterator[None]:
    """Send every call of `layers` (path → module) through `observer`."""
    originals = {path: type(layer) for path, layer in layers.items()}
    try:
        for path, layer in layers.items():
            layer.__class__ = _observed_class(type(layer), path, observer)
        yield
    finally:
        for path, layer in layers.items():
            layer.__class__ = originals[path]


def squares(array: mx.array, role: Role, experts: mx.array | None, lead: Sequence[int]) -> mx.array:
    """Sum of squares of `array` (..., n) over everything but its last axis, in float32.

    Args:
        array: Input or output of a layer, (..., n).
        role: How the layer acts.
        experts: For a switch layer, the expert of each row, (...).
        lead: Leading axes of the weight: () or (experts,) or (heads,).

    Returns:
        (*lead, n), float32.
    """
    squared = mx.square(array.astype(mx.float32))
    width = array.shape[-1]
    if role is Role.SWITCH:
        assert experts is not None
        rows = squared.sum(-2)  # (..., n): switch layers take (..., 1, n)
        rows = mx.broadcast_to(rows, (*experts.shape, width)).reshape(-1, width)
        return mx.zeros((*lead, width)).at[experts.reshape(-1)].add(rows)
    if role in (Role.HEADS, Role.TRANSPOSED):
        by_head = squared.sum(-2).reshape(-1, squared.shape[-3], width).sum(0)
        return mx.broadcast_to(by_head, (*lead, width))
    return squared.reshape(-1, width).sum(0)


def _observed_class(original: type, path: str, observer: Observer) -> type:
    def observe(role: Role, x: mx.array, y: Any, experts: mx.array | None = None) -> Any:
        if isinstance(y, mx.array):
            return observer(Observation(path, role, x, y, experts))
        # A fused layer splits its output; it is one matrix all the same.
        widths = [part.shape[-1] for part in y]
        joined = observer(Observation(path, role, x, mx.concatenate(list(y), axis=-1)))
        ends = [sum(widths[: i + 1]) for i in range(len(widths) - 1)]
        return type(y)(mx.split(joined, ends, axis=-1))

    switch, multi_head = is_switch(original), is_multi_head(original)

    def call(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        y = original.__call__(self, x, *args, **kwargs)
        if switch:
            experts = args[0] if args else kwargs["indices"]
            if experts.shape != y.shape[:-2]:  # one expert for many rows
                experts = mx.broadcast_to(experts, y.shape[:-2])
            return observe(Role.SWITCH, x, y, experts)
        if multi_head:
            transpose = args[0] if args else kwargs.get("transpose", True)
            return observe(Role.HEADS if transpose else Role.TRANSPOSED, x, y)
        return observe(Role.LOOKUP if issubclass(original, nn.Embedding) else Role.LINEAR, x, y)

    def as_linear(self: Any, x: mx.array) -> Any:
        return observe(Role.LINEAR, x, original.as_linear(self, x))  # type: ignore[attr-defined]

    methods: dict[str, Any] = {"__call__": call}
    if hasattr(original, "as_linear"):
        methods["as_linear"] = as_linear
    return type(original.__name__, (original,), methods)
