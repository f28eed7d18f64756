"""The inputs of one call of a model: token ids alone, or with the arrays of an image.

Processors belong to stock mlx-vlm and run in its process only (`stock_process`); the arrays that
they make come back as a file of numpy's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

__all__ = ["Batch", "ModelInputs", "last_positions", "run_model", "tokens_of"]

_LAST_POSITIONS = 16
"""Positions whose logits are compared where an image takes thousands: each rests on all before."""

_SEPARATOR = "#"


@dataclass(frozen=True)
class ModelInputs:
    """One call of a model.

    Attributes:
        tokens: (batch, seq), int32.
        others: Name of an argument → array or list of arrays, such as `pixel_values`.
        num_text: How many of the last tokens stand behind an image, or are the image's last one.
    """

    tokens: mx.array
    others: Mapping[str, Any] = field(default_factory=dict)
    num_text: int = 0

    @classmethod
    def of(cls, window: Sequence[int] | ModelInputs) -> ModelInputs:
        """A window of token ids as a batch of its own."""
        return window if isinstance(window, ModelInputs) else cls(mx.array([list(window)]))

    @classmethod
    def of_processor(cls, prepared: Mapping[str, Any]) -> ModelInputs:
        """The result of mlx-vlm's `prepare_inputs` as the arguments of a model."""
        others = {
            {"attention_mask": "mask"}.get(name, name): value
            for name, value in prepared.items()
            if name != "input_ids" and _are_arrays(value)
        }
        return cls(prepared["input_ids"].astype(mx.int32), others)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Name → array, for a file; floating ones as float32."""
        found = {"tokens": _as_numpy(self.tokens)}
        for name, value in self.others.items():
            if isinstance(value, mx.array):
                found[name] = _as_numpy(value)
            else:
                found |= {f"{name}{_SEPARATOR}{i}": _as_numpy(v) for i, v in enumerate(value)}
        return found

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> ModelInputs:
        """The way back of `to_arrays`.

        Raises:
            KeyError: There are no tokens.
        """
        others: dict[str, Any] = {}
        for name, array in arrays.items():
            argument, is_listed, _ = name.partition(_SEPARATOR)
            if is_listed:
                others.setdefault(argument, []).append(mx.array(array))
            elif name != "tokens":
                others[name] = mx.array(array)
        return cls(mx.array(arrays["tokens"]), others)


Batch = mx.array | ModelInputs
"""Token ids, (batch, seq), int32, or more than these."""


def tokens_of(batch: Batch) -> mx.array:
    """Token ids, (batch, seq)."""
    return batch.tokens if isinstance(batch, ModelInputs) else batch


def run_model(model: Any, inputs: Batch) -> Any:
    """Call `model` with token ids, (batch, seq), or with all arguments."""
    if isinstance(inputs, ModelInputs):
        return model(inputs.tokens, **inputs.others)
    return model(inputs)


def last_positions(inputs: ModelInputs, logits: mx.array) -> mx.array:
    """Logits (seq, vocab) that are compared: all, but the last few where there is an image."""
    return logits[-_LAST_POSITIONS:] if inputs.others else logits


def _are_arrays(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(isinstance(each, mx.array) for each in value)
    return isinstance(value, mx.array)


def _as_numpy(array: mx.array) -> np.ndarray:
    is_floating = mx.issubdtype(array.dtype, mx.floating)
    return np.asarray(array.astype(mx.float32) if is_floating else array)
