"""Turn a weight into MLX's stock quantized arrays, with better numbers in them.

Layout (affine): codes are a little-endian bit stream in uint32 words along the input
axis; each group of `group_size` weights has one scale and one bias in the weight's dtype.
`mx.quantize` takes them from the group's minimum and maximum; here they are chosen by
least squares, weighted by how much each input matters, over a few clipped ranges, and
judged as they will be stored (rounded scale, rounded bias).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from dynquant.quant.formats import UNQUANTIZED, QuantFormat

__all__ = ["Encoded", "decode", "encode", "encode_min_max", "pack", "squared_errors"]

# Fractions of a group's range at its lower and upper end; coarse codes gain from clipping.
_CLIPPED = {
    2: (1.0, 0.85, 0.7, 0.55),
    3: (1.0, 0.9, 0.8),
    4: (1.0, 0.92, 0.84),
    5: (1.0, 0.95),
    6: (1.0, 0.97),
    8: (1.0,),
}
# Rows are encoded in chunks of about this many weights: few enough to stay in a CPU's cache,
# enough to keep a GPU busy.
_CHUNK_WEIGHTS = {mx.cpu: 1 << 17, mx.gpu: 1 << 21}
_TINY = 1e-12


@dataclass(frozen=True)
class Encoded:
    """A weight as MLX stores it.

    Attributes:
        arrays: Parameter name (`weight`, `scales`, `biases`) → array.
        fmt: The format that they are in.
    """

    arrays: Mapping[str, mx.array]
    fmt: QuantFormat


def encode(
    weight: mx.array,
    importance_of: Callable[[mx.array], mx.array],
    fmt: QuantFormat,
    *,
    search: bool = True,
) -> Encoded:
    """Store `weight` as `fmt`, with the least weighted square error that the search finds.

    Args:
        weight: (..., out, in), in the dtype of the scales and biases.
        importance_of: Indices of rows, (n,) → weight of each squared error in them,
            broadcastable to (n, in), float32; rows count over all leading axes.
        fmt: A format that fits the weight.
        search: Choose scales by least squares; False gives `mx.quantize`'s own.
    """
    if fmt == UNQUANTIZED:
        return Encoded({"weight": weight}, fmt)
    if fmt.mode != "affine" or not search:
        return encode_min_max(weight, fmt)
    rows = weight.reshape(-1, weight.shape[-1])
    step = max(1, _CHUNK_WEIGHTS[mx.default_device().type] // rows.shape[-1])
    parts = []
    for start in range(0, rows.shape[0], step):
        chunk = rows[start : start + step]
        matter = importance_of(mx.arange(start, start + chunk.shape[0]))
        part = _encode_rows(chunk, mx.broadcast_to(matter, chunk.shape), fmt)
        mx.eval(part)
        parts.append(part)
    columns = zip(*parts, strict=True)
    codes, scales, biases = (mx.concatenate(list(column)) for column in columns)
    return affine(codes.reshape(weight.shape), scales, biases, fmt)


def squared_errors(
    weight: mx.array, matter: mx.array, fmt: QuantFormat, *, search: bool
) -> mx.array:
    """Of each weight as `encode` would store it, not yet evaluated; for few weights.

    Args:
        weight: (rows, in), in the dtype of the scales and biases.
        matter: Weight of each squared error, as `weight`, float32.
        fmt: A format that fits the weight.
        search: As for `encode`.
    """
    wanted = weight.astype(mx.float32)
    if fmt.mode != "affine" or not search:
        return mx.square(decode(encode_min_max(weight, fmt)) - wanted)
    codes, *pair = _encode_rows(weight, matter, fmt)
    scales, biases = (each.astype(mx.float32)[..., None] for each in pair)
    stored = codes.reshape(*scales.shape[:-1], -1).astype(mx.float32) * scales + biases
    return mx.square(stored.reshape(weight.shape) - wanted)


def affine(codes: mx.array, scales: mx.array, biases: mx.array, fmt: QuantFormat) -> Encoded:
    """The stock arrays of codes (..., out, in) and their groups' scales and biases."""
    lead = codes.shape[:-1]
    return Encoded(
        {
            "weight": pack(codes, fmt.bits).reshape(*lead, -1),
            "scales": scales.reshape(*lead, -1),
            "biases": biases.reshape(*lead, -1),
        },
        fmt,
    )


def encode_min_max(weight: mx.array, fmt: QuantFormat) -> Encoded:
    """Store `weight` as stock `mx.quantize` does."""
    names = ("weight", "scales", "biases")
    parts = mx.quantize(weight, fmt.group_size, fmt.bits, mode=fmt.mode)
    return Encoded(dict(zip(names, parts, strict=False)), fmt)


def decode(encoded: Encoded, dtype: mx.Dtype = mx.float32) -> mx.array:
    """The weights that MLX will compute with in `dtype`, (..., out, in).

    `encoded` may hold `global_scale` too: one number, or one for each expert of (experts, ...).
    """
    arrays, fmt = encoded.arrays, encoded.fmt
    if fmt == UNQUANTIZED:
        return arrays["weight"].astype(dtype)
    dequantize = partial(mx.dequantize, group_size=fmt.group_size, bits=fmt.bits, mode=fmt.mode)
    if fmt.mode == "affine":
        scales, biases = (arrays[name].astype(dtype) for name in ("scales", "biases"))
        return dequantize(arrays["weight"], scales, biases)
    dequantize = partial(dequantize, dtype=dtype)
    own = arrays.get("global_scale")
    if own is None or own.ndim == 0:
        return dequantize(arrays["weight"], arrays["scales"], global_scale=own)
    each = zip(arrays["weight"], arrays["scales"], own, strict=True)
    return mx.stack([dequantize(w, s, global_scale=scale) for w, s, scale in each])


def pack(codes: mx.array, bits: int) -> mx.array:
    """Pack codes below 2**bits, (..., n), 32 dividing n, into (..., n * bits / 32) uint32."""
    blocks = codes.astype(mx.uint32).reshape(*codes.shape[:-1], -1, 32)
    words: list[mx.array | None] = [None] * bits
    for index in range(32):
        code = blocks[..., index]
        word, shift = divmod(index * bits, 32)
        _or_into(words, word, code << shift)
        if shift + bits > 32:
            _or_into(words, word + 1, code >> (32 - shift))
    packed = mx.stack([word for word in words if word is not None], axis=-1)
    return packed.reshape(*codes.shape[:-1], -1)


def fit_groups(
    weight: mx.array, matter: mx.array, bits: int, dtype: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """Scale and bias of each group, by weighted least squares over clipped ranges.

    Args:
        weight: (..., group_size), float32.
        matter: Importance of each weight, broadcastable to `weight`, float32.
        bits: Width of a code.
        dtype: What scales and biases will be rounded to.

    Returns:
        Scales and biases, (...,) each, float32 numbers that `dtype` represents exactly.

    Source: the range search follows llama.cpp's `make_qkx3_quants`. Not under `mx.compile`:
    on CUDA the compiler took minutes over this graph where running it takes a second.
    """
    top = 2**bits - 1
    low, high = weight.min(-1), weight.max(-1)
    floor = _TINY * mx.maximum(mx.abs(low), mx.abs(high)) + 1e-30
    # All-zero importance must not make every choice look equally good.
    matter = matter / (matter.mean(-1, keepdims=True) + 1e-37) + 1e-6
    total = matter.sum(-1)
    middle = (matter * weight).sum(-1) / total
    # Of centred weights the losses below are small differences of small numbers.
    centred = weight - middle[..., None]
    weighted = matter * centred
    first, second = weighted.sum(-1), (weighted * centred).sum(-1)

    def stored(values: mx.array) -> mx.array:
        return values.astype(dtype).astype(mx.float32)

    def with_error(scales: mx.array, biases: mx.array) -> _Choices:
        """The pairs with their loss as they will be used, nearest codes and all."""
        codes = quantize_to(weight, scales[..., None], biases[..., None], bits)
        error = codes * scales[..., None] + biases[..., None] - weight
        return _Choices(scales, biases, (matter * mx.square(error)).sum(-1))

    def solved(scales: mx.array, biases: mx.array) -> _Choices:
        """Least squares for fixed codes, rounded as stored; the old pair where singular.

        The loss is that of the same codes: what the nearest ones would still gain is little.
        """
        codes = quantize_to(weight, scales[..., None], biases[..., None], bits)
        by_matter = matter * codes
        ones, squares = by_matter.sum(-1), (by_matter * codes).sum(-1)
        across = (weighted * codes).sum(-1)
        determinant = total * squares - ones * ones
        singular = determinant <= 1e-9 * total * total
        slope = (total * across - ones * first) / mx.where(singular, 1.0, determinant)
        slope = stored(slope)
        singular = singular | (mx.abs(slope) < 1e-30)
        slope = mx.where(singular, scales, slope)
        bias = mx.where(singular, biases, stored(middle + (first - slope * ones) / total))
        off = bias - middle
        loss = slope * (slope * squares + 2 * (off * ones - across)) + off * (
            off * total - 2 * first
        )
        return _Choices(slope, bias, loss + second)

    scales, biases = _min_max(low, high, top, floor)
    scales, biases = stored(scales), stored(biases)
    scales = mx.where(mx.abs(scales) < 1e-30, 1e-30, scales)
    # All upper ends at once: of a few groups the operations cost more than the numbers.
    above = mx.array(_CLIPPED[bits]).reshape(-1, *(1 for _ in middle.shape))
    found = []
    for below in _CLIPPED[bits]:
        bottom = middle + below * (low - middle)
        spans = mx.maximum((middle + above * (high - middle) - bottom) / top, floor)
        found.append(solved(spans, mx.broadcast_to(bottom, spans.shape)))
    chosen = _least(found)
    best = _least(
        [with_error(scales[None], biases[None]), with_error(chosen.scales, chosen.biases)]
    )
    for _ in range(2):
        again = solved(best.scales, best.biases)
        best = _least([best, with_error(again.scales, again.biases)])
    return best.scales[0], best.biases[0]


class _Choices(NamedTuple):
    """Scales and biases to choose from and what each would cost, (choices, ...)."""

    scales: mx.array
    biases: mx.array
    losses: mx.array


def _least(found: Sequence[_Choices]) -> _Choices:
    """The choice of least loss, the first of equals, (1, ...)."""
    joined = [mx.concatenate(list(each)) for each in zip(*found, strict=True)]
    choice = mx.argmin(joined[-1], axis=0, keepdims=True)
    return _Choices(*(mx.take_along_axis(each, choice, axis=0) for each in joined))


def _encode_rows(
    rows: mx.array, matter: mx.array, fmt: QuantFormat
) -> tuple[mx.array, mx.array, mx.array]:
    grouped = rows.astype(mx.float32).reshape(rows.shape[0], -1, fmt.group_size)
    matter = matter.reshape(grouped.shape)
    scales, biases = fit_groups(grouped, matter, fmt.bits, rows.dtype)
    codes = quantize_to(grouped, scales[..., None], biases[..., None], fmt.bits)
    return (
        codes.astype(mx.uint32).reshape(rows.shape),
        scales.astype(rows.dtype),
        biases.astype(rows.dtype),
    )


def quantize_to(weight: mx.array, scales: mx.array, biases: mx.array, bits: int) -> mx.array:
    """Nearest codes for given scales and biases, float32."""
    return mx.clip(mx.round((weight - biases) / scales), 0, 2**bits - 1)


def _min_max(low: mx.array, high: mx.array, top: int, floor: mx.array) -> tuple[mx.array, mx.array]:
    """Scale and bias as `mx.quantize` chooses them: the larger end exact, zero a code."""
    span = mx.maximum((high - low) / top, floor)
    at_low = mx.abs(low) > mx.abs(high)
    scales = mx.where(at_low, span, -span)
    edge = mx.where(at_low, low, high)
    codes = mx.round(edge / scales)
    scales = mx.where(codes == 0, scales, edge / mx.where(codes == 0, 1.0, codes))
    return scales, mx.where(codes == 0, 0.0, edge)


def _or_into(words: list[mx.array | None], index: int, value: mx.array) -> None:
    present = words[index]
    words[index] = value if present is None else present | value


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes of packed words, (..., words) uint32 → (..., n): the plain reference for `pack`."""
    as_bits = np.unpackbits(packed.view(np.uint8), axis=-1, bitorder="little")
    codes = as_bits.reshape(*packed.shape[:-1], -1, bits)
    return (codes.astype(np.uint32) << np.arange(bits, dtype=np.uint32)).sum(-1)
