"""Turn a weight into MLX's stock quantized arrays, with scales and biases by least squares.

Layout (affine): codes are a little-endian bit stream in uint32 words along the input
axis; each group of `group_size` weights has one scale and one bias in the weight's dtype.
`mx.quantize` takes them from the group's minimum and maximum. Here they are chosen by least
squares, weighted by the importance of each weight, over a few clipped ranges; the loss of each
choice is that of the scale and bias as they are stored, rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import mlx.core as mx

from dynquant.quant.formats import UNQUANTIZED, QuantFormat

__all__ = [
    "Encoded",
    "decode",
    "encode",
    "encode_min_max",
    "from_codes",
    "pack",
    "shifted",
    "squared_errors",
    "unpacked",
]

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
        importances = importance_of(mx.arange(start, start + chunk.shape[0]))
        part = _encode_rows(chunk, mx.broadcast_to(importances, chunk.shape), fmt)
        mx.eval(part)
        parts.append(part)
    columns = zip(*parts, strict=True)
    codes, scales, biases = (mx.concatenate(list(column)) for column in columns)
    return affine(codes.reshape(weight.shape), scales, biases, fmt)


def squared_errors(
    weight: mx.array, importances: mx.array, fmt: QuantFormat, *, search: bool
) -> mx.array:
    """Squared error of each weight as `encode` would store it, not yet evaluated; for few weights.

    Args:
        weight: (rows, in), in the dtype of the scales and biases.
        importances: Weight of each squared error, as `weight`, float32.
        fmt: A format that fits the weight.
        search: As for `encode`.
    """
    wanted = weight.astype(mx.float32)
    if fmt.mode != "affine" or not search:
        return mx.square(decode(encode_min_max(weight, fmt)) - wanted)
    codes, *pair = _encode_rows(weight, importances, fmt)
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


def unpacked(words: mx.array, fmt: QuantFormat) -> mx.array:
    """Codes of an affine format from packed words, (..., out, in), uint8."""
    groups = words.shape[-1] * 32 // fmt.bits // fmt.group_size
    ones = mx.ones((*words.shape[:-1], groups))
    codes = mx.dequantize(words, ones, mx.zeros_like(ones), fmt.group_size, fmt.bits)
    return codes.astype(mx.uint8)


def shifted(
    scale: mx.array, bias: mx.array, shift: mx.array, bits: int, dtype: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """Scale and bias moved by shifts t in steps of the quantizer, as stored in `dtype`.

    With m the middle code: s = s₀ (1 + t₀ / m) and b = b₀ + s₀ t₁ - s₀ t₀. The scale turns about
    the middle of the range, so that both shifts are independent.

    Args:
        scale: s₀, (..., groups), float32.
        bias: b₀, likewise.
        shift: t, (2, ..., groups), float32.
        bits: Width of a code.
        dtype: Scales and biases are rounded to it.
    """
    moved = scale * (1 + shift[0] / ((2**bits - 1) / 2))
    return moved.astype(dtype), (bias + scale * (shift[1] - shift[0])).astype(dtype)


def from_codes(codes: mx.array, scale: mx.array, bias: mx.array) -> mx.array:
    """s·q + b in float32, of the shape of `codes`; scale and bias are (..., groups)."""
    scale, bias = (each.astype(mx.float32)[..., None] for each in (scale, bias))
    return (codes.reshape(*scale.shape[:-1], -1) * scale + bias).reshape(codes.shape)


def fit_groups(
    weight: mx.array, importances: mx.array, bits: int, dtype: mx.Dtype
) -> tuple[mx.array, mx.array]:
    """Scale and bias of each group, by weighted least squares over clipped ranges.

    Args:
        weight: (..., group_size), float32.
        importances: Importance of each weight, broadcastable to `weight`, float32.
        bits: Width of a code.
        dtype: Scales and biases will be rounded to it.

    Returns:
        Scales and biases, (...,) each, float32 numbers that `dtype` represents exactly.

    Source: the range search follows llama.cpp's `make_qkx3_quants`. Not under `mx.compile`:
    on CUDA the compiler took minutes over this graph where running it takes a second.
    """
    top, fit = 2**bits - 1, _LeastSquares.of(weight, importances, bits, dtype)
    low, high = weight.min(-1), weight.max(-1)
    floor = _TINY * mx.maximum(mx.abs(low), mx.abs(high)) + 1e-30
    scales, biases = (_rounded(each, dtype) for each in _min_max(low, high, top, floor))
    scales = mx.where(mx.abs(scales) < 1e-30, 1e-30, scales)
    # All upper ends at once: with few groups the number of operations sets the time.
    above = mx.array(_CLIPPED[bits]).reshape(-1, *(1 for _ in low.shape))
    found = []
    for below in _CLIPPED[bits]:
        bottom = fit.mean + below * (low - fit.mean)
        spans = mx.maximum((fit.mean + above * (high - fit.mean) - bottom) / top, floor)
        found.append(fit.solved(spans, mx.broadcast_to(bottom, spans.shape)))
    clipped = _least(found)
    best = _least(
        [fit.with_loss(scales[None], biases[None]), fit.with_loss(clipped.scales, clipped.biases)]
    )
    for _ in range(2):
        again = fit.solved(best.scales, best.biases)
        best = _least([best, fit.with_loss(again.scales, again.biases)])
    return best.scales[0], best.biases[0]


class _Choices(NamedTuple):
    """Scales and biases to choose from, with the loss of each, (choices, ...)."""

    scales: mx.array
    biases: mx.array
    losses: mx.array


def _least(found: Sequence[_Choices]) -> _Choices:
    """The choice of least loss, the first of equals, (1, ...)."""
    joined = [mx.concatenate(list(each)) for each in zip(*found, strict=True)]
    choice = mx.argmin(joined[-1], axis=0, keepdims=True)
    return _Choices(*(mx.take_along_axis(each, choice, axis=0) for each in joined))


@dataclass(frozen=True, kw_only=True)
class _LeastSquares:
    """Groups of weights w with importance h, and the sums over a group that all its fits share.

    A group with codes c, scale s and bias b has the loss Σ h (s·c + b - w)². The sums are over the
    centred weights v = w - m with the mean m = Σhw / Σh: losses are small differences, and those
    of small numbers keep more digits.

    Attributes:
        weight: w, (..., group_size), float32.
        importances: h, as `weight`.
        bits: Width of a code.
        dtype: Scales and biases are rounded to it.
        weighted: h·v, as `weight`.
        mean: m, (...,).
        h_sum: Σh, (...,).
        hv_sum: Σhv, (...,).
        hvv_sum: Σhv², (...,).
    """

    weight: mx.array
    importances: mx.array
    bits: int
    dtype: mx.Dtype
    weighted: mx.array
    mean: mx.array
    h_sum: mx.array
    hv_sum: mx.array
    hvv_sum: mx.array

    @classmethod
    def of(
        cls, weight: mx.array, importances: mx.array, bits: int, dtype: mx.Dtype
    ) -> _LeastSquares:
        """Arguments as for `fit_groups`."""
        # Where all importance is zero, every choice would have the same loss.
        importances = importances / (importances.mean(-1, keepdims=True) + 1e-37) + 1e-6
        h_sum = importances.sum(-1)
        mean = (importances * weight).sum(-1) / h_sum
        centred = weight - mean[..., None]
        weighted = importances * centred
        return cls(
            weight=weight,
            importances=importances,
            bits=bits,
            dtype=dtype,
            weighted=weighted,
            mean=mean,
            h_sum=h_sum,
            hv_sum=weighted.sum(-1),
            hvv_sum=(weighted * centred).sum(-1),
        )

    def with_loss(self, scales: mx.array, biases: mx.array) -> _Choices:
        """The pairs with their loss for the codes nearest to the weights."""
        codes = quantize_to(self.weight, scales[..., None], biases[..., None], self.bits)
        error = codes * scales[..., None] + biases[..., None] - self.weight
        return _Choices(scales, biases, (self.importances * mx.square(error)).sum(-1))

    def solved(self, scales: mx.array, biases: mx.array) -> _Choices:
        """The pair of least loss, as stored, for the codes c that are nearest with the given pair.

        With b = m + o the normal equations are [Σhc² Σhc; Σhc Σh] (s, o)ᵀ = (Σhcv, Σhv)ᵀ; where
        they are singular, the given pair stays. The loss is that of the same codes,
        s (s Σhc² + 2 (o Σhc - Σhcv)) + o (o Σh - 2 Σhv) + Σhv²: the codes nearest with the new pair
        would lower it little further.
        """
        codes = quantize_to(self.weight, scales[..., None], biases[..., None], self.bits)
        hc = self.importances * codes
        hc_sum, hcc_sum = hc.sum(-1), (hc * codes).sum(-1)
        hcv_sum = (self.weighted * codes).sum(-1)
        determinant = self.h_sum * hcc_sum - hc_sum * hc_sum
        singular = determinant <= 1e-9 * self.h_sum * self.h_sum
        slope = self.h_sum * hcv_sum - hc_sum * self.hv_sum
        slope = _rounded(slope / mx.where(singular, 1.0, determinant), self.dtype)
        singular = singular | (mx.abs(slope) < 1e-30)
        slope = mx.where(singular, scales, slope)
        bias = _rounded(self.mean + (self.hv_sum - slope * hc_sum) / self.h_sum, self.dtype)
        bias = mx.where(singular, biases, bias)
        offset = bias - self.mean
        loss = slope * (slope * hcc_sum + 2 * (offset * hc_sum - hcv_sum)) + offset * (
            offset * self.h_sum - 2 * self.hv_sum
        )
        return _Choices(slope, bias, loss + self.hvv_sum)


def _rounded(values: mx.array, dtype: mx.Dtype) -> mx.array:
    """`values` as they will be stored, float32."""
    return values.astype(dtype).astype(mx.float32)


def _encode_rows(
    rows: mx.array, importances: mx.array, fmt: QuantFormat
) -> tuple[mx.array, mx.array, mx.array]:
    grouped = rows.astype(mx.float32).reshape(rows.shape[0], -1, fmt.group_size)
    importances = importances.reshape(grouped.shape)
    scales, biases = fit_groups(grouped, importances, fmt.bits, rows.dtype)
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
