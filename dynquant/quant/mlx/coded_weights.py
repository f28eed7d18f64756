"""The numbers of weights that are stored as codes with scales, computed lazily.

They are multiplied out before the model's class sees them: some classes of mlx-lm take the bytes
of float8 for integers, and stock mlx-lm takes every packed integer for 4 bits in groups of 32.
Every weight is its own small graph, so a pass over the model dequantizes block by block.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from dynquant.model.coded_weights import CodedWeight, Coding, is_activation_scale
from dynquant.model.quantized_sources import Tensor
from dynquant.quant.formats import FLOAT_FORMATS, QuantFormat
from dynquant.quant.mlx.arrays import Weights

__all__ = ["decoded", "native_formats"]

_FLOAT4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""E2M1: code → number."""
_EXPONENT_BIAS = 127  # of E8M0, a power of two
_DTYPES = {"F16": mx.float16, "BF16": mx.bfloat16}


def decoded(
    weights: Weights, coded: Mapping[str, CodedWeight], tensors: Mapping[str, Tensor]
) -> Weights:
    """`weights` with numbers in place of codes and scales, not yet evaluated.

    Args:
        weights: Name → array as it is stored.
        coded: Those that are codes, see `model.coded_weights`.
        tensors: Name → dtype and shape of what is stored.
    """
    used = {name for weight in coded.values() for name in weight.stored}
    used |= {name for name, tensor in tensors.items() if is_activation_scale(name, tensor)}
    plain = {name: array for name, array in weights.items() if name not in used}
    for name, weight in coded.items():
        if weight.codes in weights:
            plain[name] = _decoded(weight, weights, tensors[weight.scales].dtype)
    return plain


def native_formats(coded: Mapping[str, CodedWeight]) -> set[QuantFormat]:
    """MLX's float formats that some of the weights are stored in, codes and scales alike.

    Integers in groups are in every menu. NVFP4 is left out: its scales have a scale of their own.
    """
    forms = {weight.form.lower() for weight in coded.values()}
    return {fmt for fmt in FLOAT_FORMATS if fmt.name in forms - {"nvfp4"}}


def _decoded(weight: CodedWeight, weights: Weights, scale_dtype: str) -> mx.array:
    codes, scales = weights[weight.codes], weights[weight.scales]
    dtype = _DTYPES[weight.dtype]
    if weight.coding is Coding.FLOAT4:
        codes = codes.reshape(*weight.shape[:-1], -1)
        if weight.are_powers and not weight.global_scale:
            words = codes.view(mx.uint8).view(mx.uint32)
            return mx.dequantize(words, scales, mode="mxfp4", group_size=32, bits=4, dtype=dtype)
    scales = _numbers_of(scales, scale_dtype).reshape(weight.scale_shape)
    if weight.global_scale:
        own = weights[weight.global_scale].astype(mx.float32)
        own = own.reshape(-1, *(1 for _ in weight.shape[1:])) if own.size > 1 else own.reshape(())
        scales = scales / own if weight.divides else scales * own
    zeros = _zeros(weight, weights) if weight.zeros else None
    if len(weight.shape) < 3:
        group_of = weights[weight.group_of] if weight.group_of else None
        return _product(weight, codes, scales, zeros, group_of).astype(dtype)
    # One expert at a time: what is computed on the way is as large as one of them.
    lead = weight.shape[:-2]
    codes = codes.reshape(-1, *codes.shape[-2:])
    scales = mx.broadcast_to(scales, (*lead, *scales.shape[-2:]))
    scales = scales.reshape(-1, *scales.shape[-2:])
    each = [
        _product(weight, code, scale, None, None).astype(dtype)
        for code, scale in zip(codes, scales, strict=True)
    ]
    return mx.stack(each).reshape(weight.shape)


def _product(
    weight: CodedWeight,
    codes: mx.array,
    scales: mx.array,
    zeros: mx.array | None,
    group_of: mx.array | None,
) -> mx.array:
    """(code - zero) × scale of a matrix, float32: rounded once, when it is stored."""
    numbers = _numbers(weight, codes)
    shape, (rows, columns) = numbers.shape, weight.blocks[-2:]
    if group_of is None and shape[0] % rows == 0 and shape[1] % columns == 0:
        blocked = numbers.reshape(shape[0] // rows, rows, shape[1] // columns, columns)
        zero = 0 if zeros is None else zeros[:, None, :, None]
        return ((blocked - zero) * scales[:, None, :, None]).reshape(shape)

    def spread(each: mx.array) -> mx.array:
        if group_of is not None:
            in_order = mx.arange(shape[1]) // columns
            # -1 says that the order was never changed.
            return mx.take(each, mx.where((group_of < 0).any(), in_order, group_of), axis=1)
        each = mx.repeat(mx.repeat(each, rows, axis=0), columns, axis=1)
        return each[: shape[0], : shape[1]]

    return (numbers - (0 if zeros is None else spread(zeros))) * spread(scales)


def _numbers(weight: CodedWeight, codes: mx.array) -> mx.array:
    """The numbers that the codes of a matrix stand for, before their scales, float32."""
    if weight.coding is Coding.FLOAT8:
        return mx.from_fp8(codes, mx.float32)
    if weight.coding is Coding.INT8:
        return codes.astype(mx.float32)
    if weight.coding is Coding.FLOAT4:
        return mx.take(mx.array(_FLOAT4), _fields(codes.view(mx.uint8), 4))
    offset = 2 ** (weight.bits - 1) if not weight.zeros else 0
    unpacked = _fields(codes.view(mx.uint32), weight.bits)[..., : weight.shape[-1]]
    return unpacked.astype(mx.float32) - offset


def _zeros(weight: CodedWeight, weights: Weights) -> mx.array:
    """Zero points with the shape of the scales, float32; packed along the rows if codes are."""
    zeros = weights[weight.zeros]
    if weight.coding is Coding.PACKED_INT:
        zeros = _fields(zeros.T.view(mx.uint32), weight.bits)[..., : weight.scale_shape[0]].T
    return zeros.reshape(weight.scale_shape).astype(mx.float32)


def _numbers_of(scales: mx.array, dtype: str) -> mx.array:
    """Scales as float32, from the dtype that the header names."""
    if dtype in ("F8_E8M0", "U8"):
        return mx.power(2.0, scales.astype(mx.float32) - _EXPONENT_BIAS)
    if dtype == "F8_E4M3":
        return mx.from_fp8(scales, mx.float32)
    return scales.astype(mx.float32)


def _fields(words: mx.array, bits: int) -> mx.array:
    """Unsigned integers of `bits` in words (..., n), the lowest bits first, (..., more)."""
    per_word = words.itemsize * 8 // bits
    shifts = mx.arange(0, per_word * bits, bits).astype(words.dtype)
    fields = (words[..., None] >> shifts) & mx.array(2**bits - 1, words.dtype)
    return fields.reshape(*words.shape[:-1], -1)
