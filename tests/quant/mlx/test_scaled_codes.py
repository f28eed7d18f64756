from __future__ import annotations

from math import ceil

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.errors import UnsupportedModelError
from dynquant.model.quantized_sources import Tensor
from dynquant.quant.mlx.scaled_codes import ScaledCodes

NAME = "model.layers.0.mlp.up_proj.weight"


def float8(code: int) -> float:
    """E4M3 by its definition: 1 sign, 4 exponent, 3 mantissa bits, bias 7."""
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if exponent == 0:
        return sign * mantissa / 8 * 2.0**-6
    return sign * (1 + mantissa / 8) * 2.0 ** (exponent - 7)


def tensors(shape, scales, *, suffix="_scale_inv", dtype="F8_E4M3", scale_dtype="F32"):
    return {NAME: Tensor(dtype, shape), NAME + suffix: Tensor(scale_dtype, scales)}


def by_hand(codes: np.ndarray, scales: np.ndarray, block: tuple[int, int]) -> np.ndarray:
    found = np.zeros(codes.shape)
    for row in range(codes.shape[0]):
        for column in range(codes.shape[1]):
            scale = scales[row // block[0], column // block[1]]
            found[row, column] = float8(int(codes[row, column])) * scale
    return found


@settings(max_examples=40)
@given(
    rows=st.integers(1, 300),
    columns=st.integers(1, 300),
    seed=st.integers(0, 99),
)
def test_codes_in_blocks_are_multiplied_by_the_scale_of_their_block(rows, columns, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (rows, columns)).astype(np.uint8)
    codes[(codes & 127) == 127] = 0  # NaN
    scales = rng.uniform(0.5, 2, (ceil(rows / 128), ceil(columns / 128))).astype(np.float32)
    found = ScaledCodes.of(tensors(codes.shape, scales.shape), {}).decoded(
        {NAME: mx.array(codes), NAME + "_scale_inv": mx.array(scales), "other": mx.zeros(3)}
    )
    assert set(found) == {NAME, "other"}
    expected = by_hand(codes, scales, (128, 128))
    np.testing.assert_allclose(
        np.asarray(found[NAME].astype(mx.float32)), expected, rtol=2**-8, atol=1e-6
    )


@pytest.mark.parametrize(
    ("shape", "block"),
    [((), (64, 96)), ((1,), (64, 96)), ((64,), (1, 96)), ((64, 1), (1, 96)), ((1, 96), (64, 1))],
)
@pytest.mark.parametrize("suffix", ["_scale_inv", "_scale"])
def test_a_scale_may_be_one_for_the_tensor_a_row_or_a_column(shape, block, suffix):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 120, (64, 96)).astype(np.uint8)
    scales = rng.uniform(0.5, 2, shape).astype(np.float32)
    found = ScaledCodes.of(tensors(codes.shape, shape, suffix=suffix), {}).decoded(
        {NAME: mx.array(codes), NAME + suffix: mx.array(scales)}
    )
    full = (
        scales.reshape(-1, 1)
        if len(shape) == 1
        else scales.reshape(-1, scales.shape[-1] if shape else 1)
    )
    np.testing.assert_allclose(
        np.asarray(found[NAME].astype(mx.float32)), by_hand(codes, full, block), rtol=2**-8
    )


def test_the_block_that_the_config_names_counts():
    codes = np.full((96, 96), 0x38, dtype=np.uint8)  # 1.0
    scales = np.arange(9, dtype=np.float32).reshape(3, 3) + 1
    config = {"quantization_config": {"weight_block_size": [32, 32]}}
    found = ScaledCodes.of(tensors((96, 96), (3, 3)), config).decoded(
        {NAME: mx.array(codes), NAME + "_scale_inv": mx.array(scales)}
    )
    assert found[NAME][95, 31].item() == 7.0
    assert found[NAME][32, 95].item() == 6.0


def test_scales_may_be_powers_of_two_and_codes_integers():
    codes = np.array([[0x38, 0x38]], dtype=np.uint8)
    held = tensors((1, 2), (1, 1), scale_dtype="F8_E8M0")
    found = ScaledCodes.of(held, {}).decoded(
        {NAME: mx.array(codes), NAME + "_scale_inv": mx.array([[130]], dtype=mx.uint8)}
    )
    assert found[NAME].tolist() == [[8.0, 8.0]]
    held = tensors((1, 2), (1,), suffix="_scale", dtype="I8")
    found = ScaledCodes.of(held, {}).decoded(
        {NAME: mx.array([[-3, 4]], dtype=mx.int8), NAME + "_scale": mx.array([0.5])}
    )
    assert found[NAME].tolist() == [[-1.5, 2.0]]


def test_experts_in_one_tensor_have_blocks_each():
    codes = np.full((2, 256, 128), 0x38, dtype=np.uint8)
    scales = np.array([[[1.0], [2.0]], [[3.0], [4.0]]], dtype=np.float32)
    found = ScaledCodes.of(tensors(codes.shape, scales.shape), {}).decoded(
        {NAME: mx.array(codes), NAME + "_scale_inv": mx.array(scales)}
    )
    assert [found[NAME][e, r, 0].item() for e, r in ((0, 0), (0, 255), (1, 127), (1, 128))] == [
        1.0,
        2.0,
        3.0,
        4.0,
    ]


def test_float8_without_a_scale_is_refused():
    with pytest.raises(UnsupportedModelError, match="no scale is beside it"):
        ScaledCodes.of({NAME: Tensor("F8_E4M3", (64, 64))}, {})


def test_scales_of_no_known_layout_are_refused():
    with pytest.raises(UnsupportedModelError, match=r"\[3, 3\]"):
        ScaledCodes.of(tensors((128, 128), (3, 3)), {})
