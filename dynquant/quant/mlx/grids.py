"""Weights that lie on the grid of a format already, stored without any error.

Quantization-aware training and publishers' own quantization leave weights w = round(s · c + b) with
codes c, rounded to the dtype of the weight. Least squares need not find s and b: a group seldom has
all codes, and the range that it spans is then no multiple of s. But such grids have a known shape:

- symmetric, b = -2^(bits-1) · s, the extremum of the group on the lowest code or near it
  (compressed-tensors, Q4_0 of llama.cpp);
- asymmetric, lowest and highest weight on the lowest and highest code, or one step from there
  (`mx.quantize`);
- float codes with a power of two as scale (MXFP4, MXFP8), of which the smallest fits that has room
  for the extremum.

A layer of which every group is reproduced to the bit by one of these is stored so; of another layer
mostly four groups are looked at.
"""

from __future__ import annotations

import mlx.core as mx

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.encoding import Encoded, affine, quantize_to

__all__ = ["on_grid"]

_FRACTIONS = {4: (8, 7, 6, 5, 4), 8: (128, 127)}
"""Width → the number of steps from zero at which a symmetric grid may have its extremum."""
_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_TOPS = {"mxfp4": 6.0, "mxfp8": 448.0}
_EXPONENT_BIAS = 127  # of float32 and of E8M0
_MANTISSA_BITS = 23
_CHUNK_WEIGHTS = 1 << 20
_FEW_GROUPS = 4  # looked at first: no random group is on a grid


def on_grid(weight: mx.array, fmt: QuantFormat) -> Encoded | None:
    """`weight` in `fmt` where that reproduces every number of it, rounded to its dtype; else None.

    Args:
        weight: (..., out, in), in the dtype of the scales and biases.
        fmt: A format that fits the weight.
    """
    is_affine = fmt.mode == "affine" and fmt.bits in _FRACTIONS
    if not (is_affine or fmt.mode in _TOPS) or weight.dtype == mx.float32:
        return None
    fitted = _on_affine_grid if is_affine else _on_float_grid
    rows = weight.reshape(-1, fmt.group_size)
    some, step = rows[:_FEW_GROUPS], _CHUNK_WEIGHTS // fmt.group_size
    if not _has_few_values(some, fmt.bits).item() or not fitted(some, fmt)[0].item():
        return None
    parts = []
    for start in range(0, rows.shape[0], step):
        is_exact, *arrays = fitted(rows[start : start + step], fmt)
        if not is_exact.item():
            return None
        mx.eval(arrays)
        parts.append(arrays)
    codes, scales, *rest = (mx.concatenate(list(each)) for each in zip(*parts, strict=True))
    if is_affine:
        return affine(codes.reshape(weight.shape), scales, rest[0], fmt)
    lead = weight.shape[:-1]
    words = codes.reshape(*lead, -1).view(mx.uint32)
    return Encoded({"weight": words, "scales": scales.reshape(*lead, -1)}, fmt)


def _has_few_values(groups: mx.array, bits: int) -> mx.array:
    """Whether no group has more values than there are codes."""
    ordered = mx.sort(groups, axis=-1)
    return ((ordered[:, 1:] != ordered[:, :-1]).sum(-1) < 2**bits).all()


def _on_affine_grid(groups: mx.array, fmt: QuantFormat) -> tuple[mx.array, ...]:
    """Whether all groups (n, group_size) are on a grid; codes, and scale and bias of each (n,)."""
    dtype, bits = groups.dtype, fmt.bits
    weight = groups.astype(mx.float32)
    low, high = weight.min(-1), weight.max(-1)
    extremum = mx.where(mx.abs(low) > mx.abs(high), low, high)
    half, size = 2 ** (bits - 1), mx.abs(extremum)
    guesses: list[tuple[mx.array, mx.array | None]]
    guesses = [(size / steps, None) for steps in _FRACTIONS[bits]]
    # With a negative scale the lowest code has the largest weight.
    guesses += [(-each, None) for each, _ in guesses[:1]]
    for steps in (2**bits - 1, 2**bits - 2):
        guesses += [((high - low) / steps, low), ((low - high) / steps, high)]
    scale, bias = mx.ones_like(low), mx.zeros_like(low)
    done = size == 0
    for guess, edge in guesses:
        for tried in _tried(weight, guess, edge, half, dtype):
            own = (-half * tried).astype(dtype).astype(mx.float32) if edge is None else edge
            fits = ~done & _is_exact(weight, tried, own, bits, dtype)
            scale, bias = mx.where(fits, tried, scale), mx.where(fits, own, bias)
            done = done | fits
    codes = quantize_to(weight, scale[..., None], bias[..., None], bits).astype(mx.uint32)
    return done.all(), codes, scale.astype(dtype), bias.astype(dtype)


def _tried(
    weight: mx.array, guess: mx.array, edge: mx.array | None, half: int, dtype: mx.Dtype
) -> list[mx.array]:
    """The scale of least squares for the codes that `guess` gives, and its neighbours, as stored.

    With codes k counted from where the grid is zero, or from `edge`, it is Σ k·w / Σ k².
    """
    safe = mx.where(guess == 0, 1.0, guess)[..., None]
    start = 0.0 if edge is None else edge[..., None]
    steps = mx.round((weight - start) / safe)
    steps = mx.clip(steps, -half, half - 1) if edge is None else steps
    found = (steps * (weight - start)).sum(-1) / mx.maximum((steps * steps).sum(-1), 1e-30)
    found = mx.where(found == 0, 1.0, found).astype(dtype)
    raw = found.view(mx.uint16)
    near = [found, *(each.view(dtype) for each in (raw + 1, raw - 1))]
    return [each.astype(mx.float32) for each in near]


def _is_exact(
    weight: mx.array, scale: mx.array, bias: mx.array, bits: int, dtype: mx.Dtype
) -> mx.array:
    codes = quantize_to(weight, scale[..., None], bias[..., None], bits)
    stored = (codes * scale[..., None] + bias[..., None]).astype(dtype)
    return (stored.astype(mx.float32) == weight).all(-1)


def _on_float_grid(groups: mx.array, fmt: QuantFormat) -> tuple[mx.array, ...]:
    """Whether all groups (n, 32) are on a grid; bytes of codes, and the scale of each (n,)."""
    weight = groups.astype(mx.float32)
    # The smallest power of two that brings the extremum to at most the top, by its exponent.
    bits = (mx.abs(weight).max(-1) / _TOPS[fmt.mode]).view(mx.uint32)
    exponent = (bits >> _MANTISSA_BITS) + ((bits & (2**_MANTISSA_BITS - 1)) > 0)
    exponent = mx.clip(exponent.astype(mx.int32), 1, 2 * _EXPONENT_BIAS)
    scale = (exponent.astype(mx.uint32) << _MANTISSA_BITS).view(mx.float32)
    numbers = weight / scale[..., None]
    if fmt.mode == "mxfp8":
        codes = mx.to_fp8(numbers)
        is_exact = mx.from_fp8(codes, mx.float32) == numbers
    else:
        table = mx.array(_FLOAT4)
        below = (mx.abs(numbers)[..., None] >= table[1:]).sum(-1)
        is_exact = mx.take(table, below) == mx.abs(numbers)
        sign = (groups.view(mx.uint16) >> 15).astype(mx.uint8)
        half = below.astype(mx.uint8) | (sign << 3)
        codes = half[..., ::2] | (half[..., 1::2] << 4)
    return is_exact.all(), codes, exponent.astype(mx.uint8)
