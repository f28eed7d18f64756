"""Weights of codes and scales, compared bit for bit with plain NumPy written from the descriptions.

References: `compressed_tensors/quantization/lifecycle/forward.py` (`_dequantize`) and
`compressors/{pack_quantized,nvfp4,mxfp4}`, transformers' `integrations/mxfp4.py`
(`convert_moe_packed_tensors`) and ModelOpt's `NVFP4QTensor.dequantize`: each multiplies a code by
its scale in the dtype of the scale, and rounds once.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.errors import UnsupportedModelError
from dynquant.model.code_finder import coded_weights
from dynquant.model.coded_weights import described, uncoded
from dynquant.model.quantized_sources import Tensor
from dynquant.quant.mlx.coded_weights import decoded

LAYER = "model.layers.0.mlp.up_proj"
NAME = f"{LAYER}.weight"
DTYPES = {"uint8": "U8", "int8": "I8", "int32": "I32", "int64": "I64", "float32": "F32"}
FLOAT4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def float8(codes: np.ndarray) -> np.ndarray:
    """E4M3 by its definition: 1 sign, 4 exponent, 3 mantissa bits, bias 7."""
    codes = codes.astype(int)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    size = np.where(
        exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    )
    return np.where(codes & 128, -size, size).astype(np.float32)


def bf16(values: np.ndarray) -> np.ndarray:
    """float32 numbers rounded to bfloat16, to the even one of two that are as near."""
    bits = np.asarray(values, np.float32).view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16
    return rounded.astype(np.uint32).view(np.float32)


def nibbles(packed: np.ndarray) -> np.ndarray:
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def packed_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Unsigned codes (rows, n) as a stream of bits in int32 words, padded with zeros."""
    per_word = 32 // bits
    padded = np.zeros((codes.shape[0], ceil(codes.shape[1] / per_word) * per_word), np.uint32)
    padded[:, : codes.shape[1]] = codes
    words = np.zeros((codes.shape[0], padded.shape[1] // per_word), np.uint32)
    for index in range(per_word):
        words |= padded[:, index::per_word] << np.uint32(index * bits)
    return words.view(np.int32)


def opened(
    stored: dict[str, Any], config: dict[str, Any] | None = None, *, dtypes: Mapping[str, str] = {}
) -> dict[str, mx.array]:
    """The weights that `decoded` gives; `dtypes` are those that NumPy has no name for."""
    arrays = {name: a if isinstance(a, mx.array) else mx.array(a) for name, a in stored.items()}

    def dtype(name: str, array: mx.array) -> str:
        own = {"bfloat16": "BF16", "float16": "F16"} | DTYPES
        short = next((key for key in dtypes if name.endswith(key)), "")
        return dtypes.get(short) or own[str(array.dtype).rpartition(".")[2]]

    tensors = {name: Tensor(dtype(name, a), tuple(a.shape)) for name, a in arrays.items()}
    coded = coded_weights(tensors, config or {})
    found = decoded(arrays, coded, tensors)
    plain = uncoded(tensors, coded)
    assert set(found) == set(plain)
    for name in coded:
        assert tuple(found[name].shape) == plain[name].shape
        kind = {"BF16": mx.bfloat16, "F16": mx.float16}[plain[name].dtype]
        assert found[name].dtype == kind
    return found


def same(found: mx.array, expected: np.ndarray) -> None:
    """Equal to the bit, the sign of zero too."""
    values = np.asarray(found.astype(mx.float32))
    np.testing.assert_array_equal(
        values.view(np.uint32), expected.astype(np.float32).view(np.uint32)
    )


def float8_codes(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    codes = rng.integers(0, 256, shape).astype(np.uint8)
    codes[(codes & 127) == 127] = 0  # NaN
    return codes


def spread(scales: np.ndarray, block: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    return scales.repeat(block[0], 0).repeat(block[1], 1)[: shape[0], : shape[1]]


@settings(max_examples=40)
@given(rows=st.integers(1, 300), columns=st.integers(1, 300), seed=st.integers(0, 99))
def test_float8_in_blocks_is_multiplied_by_the_scale_of_its_block(rows, columns, seed):
    rng = np.random.default_rng(seed)
    codes = float8_codes(rng, (rows, columns))
    scales = rng.uniform(1e-4, 2, (ceil(rows / 128), ceil(columns / 128))).astype(np.float32)
    found = opened(
        {NAME: codes, f"{NAME}_scale_inv": scales, "other": np.zeros(3, np.float32)},
        dtypes={".weight": "F8_E4M3"},
    )
    assert set(found) == {NAME, "other"}
    same(found[NAME], bf16(float8(codes) * spread(scales, (128, 128), codes.shape)))


@pytest.mark.parametrize(
    ("shape", "block", "form"),
    [
        ((), (64, 96), "tensor"),
        ((1,), (64, 96), "tensor"),
        ((1, 1), (64, 96), "tensor"),
        ((64,), (1, 96), "row"),
        ((64, 1), (1, 96), "row"),
        ((64, 3), (1, 32), "group of 32 weights"),
        ((2, 3), (32, 32), "block of 32 × 32 weights"),
    ],
)
@pytest.mark.parametrize("suffix", ["weight_scale_inv", "weight_scale", "scale"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_a_scale_may_be_one_for_the_tensor_a_row_a_group_or_a_block(
    shape, block, form, suffix, dtype
):
    rng = np.random.default_rng(0)
    codes = float8_codes(rng, (64, 96))
    scales = mx.array(rng.uniform(0.5, 2, shape).astype(np.float32)).astype(dtype)
    config = {"quantization_config": {"weight_block_size": [32, 32]}}
    stored = {NAME: codes, f"{LAYER}.{suffix}": scales}
    found = opened(stored, config, dtypes={".weight": "F8_E4M3"})[NAME]
    full = np.asarray(scales.astype(mx.float32))
    full = full.reshape(-1, 1) if full.ndim < 2 else full
    product = float8(codes) * spread(full, block, codes.shape)
    same(found, product.astype(np.float16) if dtype == mx.float16 else bf16(product))
    tensors = {NAME: Tensor("F8_E4M3", (64, 96)), f"{LAYER}.{suffix}": Tensor("F32", shape)}
    assert described(coded_weights(tensors, config)) == f"float8 with a scale for each {form}"


def test_the_model_s_own_dtype_counts_where_scales_are_wider():
    codes = np.array([[0x38, 0x01]], np.uint8)
    stored = {NAME: codes, f"{NAME}_scale": np.array([0.3], np.float32)}
    found = opened(stored, {"torch_dtype": "float16"}, dtypes={".weight": "F8_E4M3"})[NAME]
    same(found, (float8(codes) * np.float32(0.3)).astype(np.float16))


def test_scales_may_be_powers_of_two():
    codes = float8_codes(np.random.default_rng(1), (4, 64))
    scales = np.array([[120, 130]] * 4, np.uint8)
    for dtype in ("U8", "F8_E8M0"):
        kinds = {".weight": "F8_E4M3", "_scale": dtype}
        found = opened({NAME: codes, f"{NAME}_scale": scales}, dtypes=kinds)[NAME]
        factors = 2.0 ** (scales.astype(np.float32) - 127)
        same(found, bf16(float8(codes) * spread(factors, (1, 32), codes.shape)))
    held = {NAME: Tensor("F8_E4M3", (4, 64)), f"{NAME}_scale": Tensor("U8", (4, 2))}
    assert described(coded_weights(held, {})) == "MXFP8"


def test_experts_in_one_tensor_have_scales_each():
    rng = np.random.default_rng(2)
    codes = float8_codes(rng, (3, 256, 130))
    blocks = rng.uniform(0.5, 2, (3, 2, 2)).astype(np.float32)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    found = opened({name: codes, f"{name}_scale_inv": blocks}, dtypes={"_proj": "F8_E4M3"})[name]
    for expert in range(3):
        product = float8(codes[expert]) * spread(blocks[expert], (128, 128), (256, 130))
        same(found[expert], bf16(product))
    for scales in (blocks[:, 0, 0], blocks[:, :1, :1]):
        found = opened({name: codes, f"{name}_scale": scales}, dtypes={"_proj": "F8_E4M3"})[name]
        same(found, bf16(float8(codes) * scales.reshape(3, 1, 1)))


@pytest.mark.parametrize("with_zeros", [False, True])
@pytest.mark.parametrize("shape", [(64, 1), (64, 3)])
def test_int8_with_and_without_zero_points(with_zeros, shape):
    rng = np.random.default_rng(3)
    codes = rng.integers(-128, 128, (64, 96)).astype(np.int8)
    scales = mx.array(rng.uniform(0.01, 0.02, shape).astype(np.float32)).astype(mx.bfloat16)
    zeros = rng.integers(-128, 128, shape).astype(np.int8)
    stored = {NAME: codes, f"{NAME}_scale": scales}
    stored |= {f"{NAME}_zero_point": zeros} if with_zeros else {}
    block = (1, 96 // shape[1])
    centred = codes.astype(np.float32)
    centred -= spread(zeros.astype(np.float32), block, codes.shape) if with_zeros else 0
    full = spread(np.asarray(scales.astype(mx.float32)), block, codes.shape)
    same(opened(stored)[NAME], bf16(centred * full))


@pytest.mark.parametrize("experts", [(), (3,)])
def test_mxfp4_of_gpt_oss(experts):
    rng = np.random.default_rng(4)
    blocks = rng.integers(0, 256, (*experts, 8, 2, 16)).astype(np.uint8)
    scales = rng.integers(60, 190, (*experts, 8, 2)).astype(np.uint8)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    found = opened({f"{name}_blocks": blocks, f"{name}_scales": scales})[f"{name}.weight"]
    values = FLOAT4[nibbles(blocks)] * 2.0 ** (scales.astype(np.float32) - 127)[..., None]
    same(found, values.reshape(*experts, 8, 64))


@pytest.mark.parametrize("shape", [(), (1,)])
def test_nvfp4_of_modelopt_and_of_compressed_tensors(shape):
    rng = np.random.default_rng(5)
    packed = rng.integers(0, 256, (8, 32)).astype(np.uint8)
    scales = float8_codes(rng, (8, 4)) & 127
    own = rng.uniform(0.001, 0.002, shape).astype(np.float32)
    modelopt = {NAME: packed, f"{NAME}_scale": scales, f"{NAME}_scale_2": own}
    modelopt[f"{LAYER}.input_scale"] = np.float32(1)
    found = opened(modelopt, dtypes={"weight_scale": "F8_E4M3"})
    assert set(found) == {NAME}
    numbers, sizes = FLOAT4[nibbles(packed)], float8(scales)
    same(found[NAME], bf16(numbers * (sizes * own).repeat(16, 1)))
    own = rng.uniform(500, 2000, shape).astype(np.float32)
    stored = {f"{NAME}_packed": packed, f"{NAME}_scale": scales, f"{NAME}_global_scale": own}
    found = opened(stored, dtypes={"weight_scale": "F8_E4M3"})
    same(found[NAME], bf16(numbers * (sizes / own).repeat(16, 1)))


def test_mxfp4_of_compressed_tensors_and_of_bytes_that_are_called_integers():
    rng = np.random.default_rng(6)
    packed = rng.integers(0, 256, (8, 32)).astype(np.uint8)
    scales = rng.integers(100, 150, (8, 2)).astype(np.uint8)
    values = FLOAT4[nibbles(packed)] * (2.0 ** (scales.astype(np.float32) - 127)).repeat(32, 1)
    same(opened({f"{NAME}_packed": packed, f"{NAME}_scale": scales})[NAME], values)
    stored = {NAME: packed.view(np.int8), f"{LAYER}.scale": scales}
    same(opened(stored, dtypes={".scale": "F8_E8M0"})[NAME], values)


def packed_config(bits: int, size: int | None, **more: object) -> dict:
    weights = {"num_bits": bits, "group_size": size, "type": "int"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}} | more
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("size", [32, 64, None])
@pytest.mark.parametrize("with_zeros", [False, True])
@pytest.mark.parametrize("order", ["", "shuffled", "unset"])
def test_integers_packed_by_compressed_tensors(bits, size, with_zeros, order):
    rng = np.random.default_rng(7)
    rows, columns = 10, 192
    groups = columns // size if size else 1
    codes = rng.integers(0, 2**bits, (rows, columns))
    scales = mx.array(rng.uniform(0.01, 0.02, (rows, groups)).astype(np.float32))
    scales = scales.astype(mx.bfloat16)
    zeros = rng.integers(0, 2**bits, (rows, groups))
    stored = {
        f"{NAME}_packed": packed_words(codes, bits),
        f"{NAME}_scale": scales,
        f"{NAME}_shape": np.array([rows, columns]),
    }
    group_of = np.arange(columns) // (columns // groups)
    if order:
        if order == "shuffled":
            rng.shuffle(group_of)
        stored[f"{NAME}_g_idx"] = (group_of if order == "shuffled" else group_of * 0 - 1).astype(
            np.int32
        )
    centred = codes - (zeros[:, group_of] if with_zeros else 2 ** (bits - 1))
    if with_zeros:
        stored[f"{NAME}_zero_point"] = packed_words(zeros.T, bits).T.copy()
    found = opened(stored, packed_config(bits, size))
    full = np.asarray(scales.astype(mx.float32))[:, group_of]
    same(found[NAME], bf16(centred.astype(np.float32) * full))


def test_of_two_groups_of_a_config_the_shapes_or_the_names_tell_which_counts():
    tensors = {f"{NAME}_packed": Tensor("I32", (8, 16)), f"{NAME}_scale": Tensor("BF16", (8, 4))}
    other = {"targets": [LAYER], "weights": {"num_bits": 8, "group_size": 16}}
    by_name = coded_weights(tensors, packed_config(4, 32, group_1=other))[NAME]
    assert (by_name.bits, by_name.shape) == (8, (8, 64))
    other = {"targets": [], "weights": {"num_bits": 8, "group_size": 64}}
    by_shape = coded_weights(tensors, packed_config(4, 32, group_1=other))[NAME]
    assert (by_shape.bits, by_shape.shape) == (4, (8, 128))
    other = {"targets": ["re:(a+)+$"], "weights": {"num_bits": 8, "group_size": 16}}
    with pytest.raises(UnsupportedModelError, match="does not go"):
        coded_weights(tensors, packed_config(4, 32, group_1=other))


SCALE = {f"{NAME}_scale": Tensor("F32", (3, 3))}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({NAME: Tensor("F8_E4M3", (64, 64))}, "no scale is beside it"),
        ({NAME: Tensor("I8", (64, 64))}, "no scale is beside it"),
        ({NAME: Tensor("F8_E5M2", (64, 64))}, "F8_E5M2"),
        ({NAME: Tensor("F8_E4M3", (128, 128)), **SCALE}, r"\[3, 3\]"),
        ({NAME: Tensor("U8", (8, 32)), f"{NAME}_scale_2": Tensor("F32", ()), **SCALE}, r"\[3, 3\]"),
        ({f"{NAME}_packed": Tensor("U8", (8, 32))}, r"\[\]"),
        ({f"{LAYER}.bitmask": Tensor("U8", (8, 8))}, "sparse"),
        ({f"{NAME}_packed": Tensor("I32", (8, 32))}, "no scale beside them"),
        ({f"{NAME}_packed": Tensor("I32", (8, 32)), **SCALE}, r"\[3, 3\]"),
        ({"x_blocks": Tensor("U8", (8, 2, 16))}, "absent"),
        ({"x_blocks": Tensor("U8", (8, 2, 16)), "x_scales": Tensor("U8", (8, 3))}, r"\[8, 3\]"),
        (
            {
                f"{NAME}_packed": Tensor("I32", (8, 8)),
                f"{NAME}_scale": Tensor("BF16", (8, 2)),
                f"{NAME}_zero_point": Tensor("I32", (8, 2)),
            },
            r"zero points.*\[8, 2\]",
        ),
    ],
)
def test_codes_that_do_not_fit_their_scales_are_refused(tensors, words):
    with pytest.raises(UnsupportedModelError, match=words):
        coded_weights(tensors, packed_config(4, 32))


def test_rotated_weights_are_refused():
    config: dict[str, Any] = {"quantization_config": {"transform_config": {"u": {"type": "x"}}}}
    with pytest.raises(UnsupportedModelError, match="rotated"):
        coded_weights({}, config)


def test_other_tensors_are_left_alone():
    tensors = {
        "h.0.attn.bias": Tensor("U8", (1, 1, 64, 64)),
        "mask": Tensor("I8", (4, 4)),
        "a.weight": Tensor("BF16", (4, 4)),
        "b.weight": Tensor("I8", (4, 4)),
        "b.SCB": Tensor("F32", (4,)),
        "c.weight": Tensor("U32", (4, 4)),
        "d.codes": Tensor("I8", (4, 4, 1)),
    }
    assert coded_weights(tensors, {}) == {}
    assert uncoded(tensors, {}) == tensors
