from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.quant.formats import (
    AFFINE_BITS,
    AFFINE_GROUP_SIZES,
    FLOAT_FORMATS,
    UNQUANTIZED,
    QuantFormat,
)
from dynquant.quant.mlx.arrays import scalar
from dynquant.quant.mlx.encoding import Encoded, decode, encode, encode_min_max, pack

DTYPES = (mx.bfloat16, mx.float16, mx.float32)
FORMATS = [QuantFormat(bits, group) for bits in AFFINE_BITS for group in AFFINE_GROUP_SIZES]
formats = st.sampled_from(FORMATS)
seeds = st.integers(0, 2**32 - 1)


def equal(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(mx.array_equal(a, b).item())


def same(a: Encoded, b: Encoded) -> bool:
    return a.fmt == b.fmt and all(equal(a.arrays[k], b.arrays[k]) for k in {*a.arrays, *b.arrays})


def random_codes(bits: int, shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**bits, shape, dtype=np.uint32)


def random_weight(shape: tuple[int, ...], dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array((rng.standard_t(4, shape) * 0.02).astype(np.float32)).astype(dtype)


def random_importance(shape: tuple[int, ...], seed: int = 1) -> mx.array:
    return mx.array(np.random.default_rng(seed).lognormal(0, 2, shape).astype(np.float32))


def weighted_error(encoded: Encoded, weight: mx.array, importance: mx.array) -> float:
    error = np.asarray(decode(encoded), np.float64) - np.asarray(weight.astype(mx.float32))
    return float((np.asarray(importance, np.float64) * error**2).sum())


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes of packed words, (..., words) uint32 → (..., n): the plain reference for `pack`."""
    as_bits = np.unpackbits(packed.view(np.uint8), axis=-1, bitorder="little")
    codes = as_bits.reshape(*packed.shape[:-1], -1, bits)
    return (codes.astype(np.uint32) << np.arange(bits, dtype=np.uint32)).sum(-1)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_dequantizing_packed_codes_with_scale_one_gives_the_codes_back(fmt):
    codes = random_codes(fmt.bits, (3, 2, 2 * fmt.group_size), seed=fmt.bits)
    ones = mx.ones((3, 2, 2))
    packed = pack(mx.array(codes), fmt.bits)
    assert packed.dtype == mx.uint32
    assert packed.shape == (3, 2, 2 * fmt.group_size * fmt.bits // 32)
    back = mx.dequantize(packed, ones, mx.zeros_like(ones), fmt.group_size, fmt.bits)
    assert np.array_equal(np.asarray(back), codes)


@settings(max_examples=60)
@given(st.sampled_from(AFFINE_BITS), st.integers(1, 3), st.integers(1, 6), seeds)
def test_unpack_undoes_pack(bits, rows, blocks, seed):
    codes = random_codes(bits, (rows, 32 * blocks), seed)
    assert np.array_equal(unpack(np.asarray(pack(mx.array(codes), bits)), bits), codes)


@settings(max_examples=40)
@given(formats, seeds)
def test_pack_writes_the_words_that_mx_quantize_writes(fmt, seed):
    words, *_ = mx.quantize(random_weight((2, 256), seed=seed), fmt.group_size, fmt.bits)
    codes = unpack(np.asarray(words), fmt.bits)
    assert codes.max() < 2**fmt.bits
    assert equal(pack(mx.array(codes), fmt.bits), words)


@settings(max_examples=60)
@given(formats, st.sampled_from(DTYPES), seeds)
def test_the_weighted_error_is_never_above_that_of_mx_quantize(fmt, dtype, seed):
    weight = random_weight((6, 256), dtype, seed)
    importance = random_importance((6, 256), seed)
    ours = weighted_error(encode(weight, lambda i: importance[i], fmt), weight, importance)
    stock = weighted_error(encode_min_max(weight, fmt), weight, importance)
    assert ours <= stock * (1 + 1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_search_helps_most_where_codes_are_few(dtype):
    weight, importance = random_weight((32, 256), dtype), random_importance((1, 256))
    gains = {}
    for bits in AFFINE_BITS:
        fmt = QuantFormat(bits, 64)
        ours = weighted_error(encode(weight, lambda _: importance, fmt), weight, importance)
        gains[bits] = ours / weighted_error(encode_min_max(weight, fmt), weight, importance)
    assert gains[2] < 0.6
    assert gains[4] < 0.8
    assert max(gains.values()) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", [QuantFormat(2, 32), QuantFormat(3, 64), QuantFormat(8, 128)])
def test_scales_and_biases_have_the_dtype_and_shape_that_mlx_expects(fmt, dtype):
    weight = random_weight((2, 3, 256), dtype)
    stored = encode(weight, lambda rows: mx.ones((1, 1)), fmt).arrays
    words, scales, biases = mx.quantize(weight, fmt.group_size, fmt.bits)
    assert {name: (array.shape, array.dtype) for name, array in stored.items()} == {
        "weight": (words.shape, mx.uint32),
        "scales": (scales.shape, dtype),
        "biases": (biases.shape, dtype),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fmt", [QuantFormat(2, 32), QuantFormat(4, 64), QuantFormat(8, 128)])
def test_constant_groups_come_back_within_the_rounding_of_their_dtype(fmt, dtype):
    values = mx.array([0.0, 0.1, -0.25, 3.0, -1e-6, 1e-7, 60000.0])[:, None]
    weight = mx.broadcast_to(values, (7, 256)).astype(dtype)
    stored = encode(weight, lambda rows: mx.ones((1, 1)), fmt)
    expected = weight.astype(mx.float32)
    epsilon = {mx.float32: 1e-6, mx.float16: 2e-3, mx.bfloat16: 1e-2}[dtype]
    tiny = 1e-7 if dtype == mx.float16 else 1e-30  # the smallest step of float16
    assert mx.allclose(decode(stored), expected, rtol=epsilon, atol=tiny).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_zero_groups_beside_others_stay_zero(bits, dtype):
    weight = mx.concatenate([mx.zeros((4, 64), dtype), random_weight((4, 64), dtype)], axis=1)
    back = decode(encode(weight, lambda rows: mx.ones((1, 1)), QuantFormat(bits, 64)))
    assert mx.abs(back[:, :64]).max().item() == 0
    assert scalar(mx.abs(back[:, 64:]).max()) > 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_single_important_outlier_survives(sign, dtype):
    weight = np.array(random_weight((1, 64)))
    weight[0, 17] = sign * 4.0
    weight_stored = mx.array(weight).astype(dtype)
    importance = mx.where(mx.arange(64) == 17, 1000.0, 1.0)[None]
    stored = encode(weight_stored, lambda rows: importance, QuantFormat(4, 64))
    assert decode(stored)[0, 17].item() == pytest.approx(sign * 4.0, rel=0.02)


@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_importance_of_zero_everywhere_encodes_as_equal_importance(bits):
    weight, fmt = random_weight((4, 128)), QuantFormat(bits, 64)
    zero = weighted_error(encode(weight, lambda _: mx.zeros((1, 1)), fmt), weight, mx.ones((1, 1)))
    one = weighted_error(encode(weight, lambda _: mx.ones((1, 1)), fmt), weight, mx.ones((1, 1)))
    assert zero == pytest.approx(one, rel=1e-3)


@settings(max_examples=60)
@given(
    formats,
    st.sampled_from(DTYPES),
    st.integers(-30, 30),
    st.integers(-30, 30),
    seeds,
)
def test_huge_and_tiny_magnitudes_stay_finite_and_close(fmt, dtype, weight_power, power, seed):
    if dtype == mx.float16:
        weight_power = max(-2, min(weight_power, 3))
    weight = (random_weight((2, 128), seed=seed) * 10.0**weight_power).astype(dtype)
    importance = random_importance((2, 128), seed) * 10.0**power
    back = decode(encode(weight, lambda i: importance[i], fmt))
    expected = weight.astype(mx.float32)
    assert mx.all(mx.isfinite(back)).item()
    spread = expected.max() - expected.min()
    assert scalar(mx.abs(back - expected).max()) <= scalar(spread)


@settings(max_examples=20)
@given(formats, seeds)
def test_encoding_twice_gives_the_same_bits(fmt, seed):
    weight, importance = random_weight((3, 128), mx.bfloat16, seed), random_importance((3, 128))
    first, second = (encode(weight, lambda i: importance[i], fmt) for _ in range(2))
    assert same(first, second)


@pytest.mark.parametrize("lead", [(), (3,)])
def test_a_large_weight_encoded_in_chunks_equals_its_parts_encoded_alone(lead):
    weight = random_weight((*lead, 1500, 256), mx.bfloat16)
    importance = random_importance((weight.size // 256, 256))
    fmt = QuantFormat(3, 64)
    whole = encode(weight, lambda i: importance[i], fmt)
    asked = list[int]()

    def part_of(start: int, stop: int) -> Encoded:
        def importance_of(rows: mx.array) -> mx.array:
            asked.append(rows.size)
            return importance[rows + start]

        return encode(weight.reshape(-1, 256)[start:stop], importance_of, fmt)

    pieces = [part_of(i, i + 700) for i in range(0, importance.shape[0], 700)]
    assert max(asked) <= 700  # else the parts would be chunks themselves
    for name, array in whole.arrays.items():
        joined = mx.concatenate([piece.arrays[name] for piece in pieces])
        assert equal(joined, array.reshape(joined.shape))


@pytest.mark.parametrize("fmt", FLOAT_FORMATS, ids=lambda fmt: fmt.name)
def test_float_formats_are_stored_as_mlx_stores_them(fmt):
    weight = random_weight((4, 128), mx.bfloat16)
    stored = encode(weight, lambda rows: mx.ones((1, 1)), fmt)
    words, scales, *_ = mx.quantize(weight, fmt.group_size, fmt.bits, mode=fmt.mode)
    assert set(stored.arrays) == {"weight", "scales"}
    assert equal(stored.arrays["weight"], words)
    assert equal(stored.arrays["scales"], scales)
    error = scalar(mx.abs(decode(stored) - weight.astype(mx.float32)).max())
    assert 0 < error < 0.3 * scalar(mx.abs(weight).max())


def test_an_unquantized_weight_is_stored_as_it_is():
    weight = random_weight((4, 100), mx.bfloat16)
    stored = encode(weight, lambda rows: mx.ones((1, 1)), UNQUANTIZED)
    assert same(stored, Encoded({"weight": weight}, UNQUANTIZED))
    assert equal(decode(stored), weight.astype(mx.float32))


def test_without_search_the_arrays_are_those_of_mx_quantize():
    weight, fmt = random_weight((4, 128), mx.float16), QuantFormat(5, 32)
    stored = encode(weight, lambda rows: mx.ones((1, 1)), fmt, search=False)
    assert same(stored, encode_min_max(weight, fmt))
    expected = mx.dequantize(*mx.quantize(weight, 32, 5), 32, 5)
    assert mx.allclose(decode(stored), expected.astype(mx.float32), rtol=2e-3, atol=2e-4).item()
