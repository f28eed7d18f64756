"""Weights on a grid: stored without error, with the codes that made them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.encoding import Encoded, decode, encode_min_max
from dynquant.quant.mlx.grids import on_grid

DTYPES = [mx.bfloat16, mx.float16]


def of(array: mx.array) -> np.ndarray:
    return np.asarray(array.astype(mx.float32))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def symmetric(size: int, bits: int, dtype: mx.Dtype, *, steps: float) -> mx.array:
    """Fake-quantized weights: the scale puts the extremum at `steps` steps from zero."""
    groups = random(3, 24, 256).reshape(-1, size)
    extremum = np.take_along_axis(groups, np.abs(groups).argmax(-1)[:, None], 1)
    # An extremum on the lowest code, as llama.cpp has it, needs a scale of the other sign.
    exact = -extremum / steps if steps == 2 ** (bits - 1) else np.abs(extremum) / steps
    scale = of(mx.array(exact).astype(dtype))
    half = 2 ** (bits - 1)
    codes = np.clip(np.rint(groups / scale), -half, half - 1)
    return mx.array((codes * scale).reshape(3, 24, 256)).astype(dtype)


def require_exact(weight: mx.array, fmt: QuantFormat) -> Encoded:
    encoded = on_grid(weight, fmt)
    assert encoded is not None
    assert mx.array_equal(decode(encoded).astype(weight.dtype), weight).item()
    stock = encode_min_max(weight, fmt)
    assert {n: (a.shape, a.dtype) for n, a in encoded.arrays.items()} == {
        n: (a.shape, a.dtype) for n, a in stock.arrays.items()
    }
    return encoded


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize(("bits", "steps"), [(4, 8), (4, 7.5), (4, 7), (8, 128), (8, 127)])
def test_symmetric_grids_come_out_bit_for_bit(dtype, size, bits, steps):
    weight = symmetric(size, bits, dtype, steps=steps)
    require_exact(weight, QuantFormat(bits, size))
    if size > 32:  # groups that share a scale of a larger one need not have its extremum
        return
    assert on_grid(mx.array(random(24, 256)).astype(dtype), QuantFormat(bits, size)) is None


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [32, 64, 128])
def test_asymmetric_grids_come_out_bit_for_bit(dtype, size):
    fmt = QuantFormat(4, size)
    groups = random(24, 256).reshape(-1, size) + 1
    low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
    scale, bias = (of(mx.array(each).astype(dtype)) for each in ((high - low) / 15, low))
    codes = np.clip(np.rint((groups - bias) / scale), 0, 15)
    codes[:, 0], codes[:, 1] = 0, 15
    weight = mx.array((codes * scale + bias).reshape(24, 256)).astype(dtype)
    require_exact(weight, fmt)
    # And what a stock quantizer wrote before.
    stock = decode(encode_min_max(mx.array(random(24, 256)).astype(dtype), fmt)).astype(dtype)
    require_exact(stock, fmt)


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8"])
def test_microscaled_floats_keep_their_codes_and_scales(mode):
    fmt = QuantFormat.from_name(mode)
    stock = encode_min_max(mx.array(random(4, 16, 256)).astype(mx.bfloat16), fmt)
    weight = decode(stock, mx.bfloat16)
    require_exact(weight, fmt)
    assert on_grid(mx.array(random(16, 256)).astype(mx.bfloat16), fmt) is None


def test_codes_of_mxfp4_that_fill_their_range_are_the_same_bytes():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (8, 2, 16)).astype(np.uint8)
    codes[..., 0] = 0x87  # 6, and the negative zero
    scales = rng.integers(100, 140, (8, 2)).astype(np.uint8)
    fmt = QuantFormat.from_name("mxfp4")
    words = mx.array(codes.reshape(8, 32)).view(mx.uint32)
    arrays = {"weight": words, "scales": mx.array(scales)}
    encoded = require_exact(decode(Encoded(arrays, fmt), mx.bfloat16), fmt)
    for name, array in arrays.items():
        assert mx.array_equal(encoded.arrays[name], array).item()


def test_groups_of_zeros_are_on_every_grid():
    weight = mx.zeros((4, 64), mx.bfloat16)
    for name in ("4g32", "8g64", "mxfp4", "mxfp8"):
        require_exact(weight, QuantFormat.from_name(name))


def test_one_weight_off_the_grid_is_enough():
    weight = of(symmetric(32, 4, mx.bfloat16, steps=8))
    weight[-1, -1, -1] += 0.003
    assert on_grid(mx.array(weight).astype(mx.bfloat16), QuantFormat(4, 32)) is None


@pytest.mark.parametrize("name", ["3g32", "6g64", "nvfp4", "unquantized"])
def test_other_formats_are_not_looked_at(name):
    fmt = QuantFormat.from_name(name)
    assert on_grid(mx.zeros((4, 64), mx.bfloat16), fmt) is None
    assert on_grid(mx.zeros((4, 64)), QuantFormat(4, 32)) is None
