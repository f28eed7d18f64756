"""Arrays of weights: the dtype to compute in, and the check for NaN and infinity."""

from __future__ import annotations

import mlx.core as mx

from dynquant.errors import NonFiniteError

__all__ = ["Weights", "check_finite", "compute_dtype", "for_compute", "is_floating", "scalar"]

Weights = dict[str, mx.array]
"""Path of a parameter → array."""

_ADDED_UP = 1 << 26  # numbers of a weight at a time


def compute_dtype(stored: mx.Dtype) -> mx.Dtype:
    """Dtype to compute in: the stored one, but float32 on a CPU and for float16 gradients.

    On the CPU a bfloat16 product runs at 5 GFLOP/s, a float32 one at 190.
    """
    if mx.default_device() == mx.Device(mx.cpu) or stored == mx.float16:
        return mx.float32
    return stored


def for_compute(weights: Weights) -> Weights:
    """`weights`, floating ones lazily cast to the dtype that this machine computes in."""
    return {
        path: array.astype(compute_dtype(array.dtype)) if is_floating(array) else array
        for path, array in weights.items()
    }


def scalar(array: mx.array) -> float:
    """The number in a floating array of one element."""
    value = array.item()
    assert isinstance(value, float)
    return value


def is_floating(array: mx.array) -> bool:
    """Whether `array` holds floating-point numbers."""
    return bool(mx.issubdtype(array.dtype, mx.floating))


def check_finite(weights: Weights) -> None:
    """Refuse damaged weights before they are used.

    Raises:
        NonFiniteError: A weight holds NaN or infinity; names its layer.
    """
    for path, array in weights.items():
        if is_floating(array) and not _is_finite(array):
            layer = path.rpartition(".")[0]
            raise NonFiniteError(
                f"The weight of layer '{layer}' holds NaN or infinity, so the model is damaged. "
                "Download it again, or ask its author.",
                layer=layer,
            )


def _is_finite(array: mx.array) -> bool:
    """Whether all numbers are finite; in chunks, since they are added up as float32."""
    numbers = array.reshape(-1)
    parts = (numbers[start : start + _ADDED_UP] for start in range(0, array.size, _ADDED_UP))
    return all(mx.isfinite(part.astype(mx.float32).sum()).item() for part in parts)
