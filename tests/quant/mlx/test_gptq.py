from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.arrays import scalar
from dynquant.quant.mlx.encoding import Encoded, decode, encode
from dynquant.quant.mlx.gptq import (
    _round_by_mlx,
    _round_by_numpy,
    encode_batch,
    encode_gptq,
)
from dynquant.quant.mlx.inverse_hessian import InverseHessian, conditional_variances
from tests.quant.mlx.factories import WIDTH, correlated_inputs, covariance_of


def random_weight(*shape: int, dtype: mx.Dtype = mx.float32, seed: int = 0) -> mx.array:
    rng = np.random.default_rng(seed)
    return mx.array(rng.normal(0, 0.05, shape).astype(np.float32)).astype(dtype)


def fed_back(
    weight: mx.array, covariance: mx.array, fmt: QuantFormat, *, num_sweeps: int = 0
) -> Encoded:
    inverse_hessian = InverseHessian.of(covariance, fmt.group_size)
    return encode_gptq(weight, inverse_hessian, fmt, num_sweeps=num_sweeps)


def output_error(encoded: Encoded, weight: mx.array, inputs: np.ndarray) -> float:
    difference = np.asarray(decode(encoded) - weight.astype(mx.float32), np.float64)
    return float(np.square(difference @ inputs.T).sum())


def least_squares(weight: mx.array, covariance: mx.array, fmt: QuantFormat) -> Encoded:
    importances = mx.diagonal(covariance, axis1=-2, axis2=-1)[None]
    return encode(weight, lambda _: importances, fmt)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("fmt", [QuantFormat(2, 32), QuantFormat(3, 64), QuantFormat(4, 128)])
def test_gptq_lowers_the_output_error_on_correlated_inputs(fmt, dtype):
    weight, inputs = random_weight(48, WIDTH, dtype=dtype), correlated_inputs()
    covariance = covariance_of(inputs)
    inverse_hessian = fed_back(weight, covariance, fmt)
    assert inverse_hessian.fmt == fmt
    assert inverse_hessian.arrays["scales"].dtype == dtype
    ours = output_error(inverse_hessian, weight, inputs)
    assert ours < 0.5 * output_error(least_squares(weight, covariance, fmt), weight, inputs)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("fmt", [QuantFormat(2, 32), QuantFormat(3, 64), QuantFormat(5, 128)])
def test_every_sweep_lowers_the_output_error_further(fmt, dtype):
    weight, inputs = random_weight(48, WIDTH, dtype=dtype), correlated_inputs()
    errors = [
        output_error(fed_back(weight, covariance_of(inputs), fmt, num_sweeps=n), weight, inputs)
        for n in (0, 1, 3)
    ]
    assert errors[0] > errors[1] >= errors[2]


def test_sweeps_leave_rows_alone_that_are_exact_already():
    steps = np.random.default_rng(0).integers(0, 16, (8, WIDTH)).astype(np.float32)
    steps[:, ::32] = 0  # every group has both ends
    steps[:, 1::32] = 15
    weight = mx.array(steps * 0.125 - 1)
    covariance = covariance_of(correlated_inputs())
    stored = fed_back(weight, covariance, QuantFormat(4, 32), num_sweeps=2)
    assert scalar(mx.abs(decode(stored) - weight).max()) < 1e-5


@pytest.mark.parametrize("fmt", [QuantFormat(3, 32), QuantFormat(4, 64)])
def test_without_correlation_gptq_is_about_as_good_as_least_squares(fmt):
    weight, covariance = random_weight(32, WIDTH), 1000 * mx.eye(WIDTH)
    inputs = np.eye(WIDTH)
    inverse_hessian = output_error(fed_back(weight, covariance, fmt), weight, inputs)
    plain = output_error(least_squares(weight, covariance, fmt), weight, inputs)
    assert inverse_hessian == pytest.approx(plain, rel=0.02)


@pytest.mark.parametrize("group_size", [32, 64])
def test_every_column_returns_to_its_place(group_size):
    """Eight bits: a column out of place would be off by far more than a step."""
    weight = random_weight(16, WIDTH) + mx.arange(WIDTH)  # each column near its own index
    sizes = np.random.default_rng(3).permutation(WIDTH).astype(np.float32) + 1
    stored = fed_back(weight, mx.diag(mx.array(sizes)), QuantFormat(8, group_size))
    steps = group_size / 255
    assert scalar(mx.abs(decode(stored) - weight).max()) < steps


def test_the_columns_of_largest_second_moment_are_encoded_best():
    weight = random_weight(64, WIDTH)
    sizes = np.where(np.arange(WIDTH) % 4 == 0, 100.0, 1.0).astype(np.float32)
    stored = fed_back(weight, mx.diag(mx.array(sizes)), QuantFormat(3, 64))
    errors = np.square(np.asarray(decode(stored) - weight)).mean(0)
    assert errors[sizes > 1].mean() < errors[sizes == 1].mean()


@pytest.mark.parametrize("rank", [1, 5])
def test_a_singular_hessian_is_damped_and_stays_finite(rank):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(rank, WIDTH)) * 100
    weight, fmt = random_weight(8, WIDTH), QuantFormat(4, 64)
    stored = fed_back(weight, covariance_of(inputs), fmt)
    assert mx.all(mx.isfinite(decode(stored))).item()
    plain = least_squares(weight, covariance_of(inputs), fmt)
    assert output_error(stored, weight, inputs) < output_error(plain, weight, inputs)


def test_inputs_that_are_always_zero_get_plain_rounding():
    inputs = correlated_inputs()
    inputs[:, 10:40] = 0
    weight = random_weight(8, WIDTH)
    stored = fed_back(weight, covariance_of(inputs), QuantFormat(8, 32))
    assert scalar(mx.abs(decode(stored) - weight)[:, 10:40].max()) < 0.01


def test_a_layer_without_inputs_is_encoded_too():
    weight = random_weight(8, WIDTH)
    stored = fed_back(weight, mx.zeros((WIDTH, WIDTH)), QuantFormat(8, 64))
    assert scalar(mx.abs(decode(stored) - weight).max()) < 0.01


def test_each_expert_is_encoded_with_its_own_hessian():
    weight, fmt = random_weight(3, 16, WIDTH), QuantFormat(4, 32)
    inputs = [correlated_inputs(seed=seed) for seed in range(3)]
    together = fed_back(weight, mx.stack(list(map(covariance_of, inputs))), fmt)
    assert together.arrays["weight"].shape == (3, 16, WIDTH * 4 // 32)
    assert together.arrays["scales"].shape == (3, 16, WIDTH // 32)
    decoded = decode(together)
    for e in range(3):
        alone = fed_back(weight[e], covariance_of(inputs[e]), fmt)
        mine = float(np.square(np.asarray(decoded[e] - weight[e]) @ inputs[e].T).sum())
        other = fed_back(weight[e], covariance_of(inputs[(e + 1) % 3]), fmt)
        assert mine == pytest.approx(output_error(alone, weight[e], inputs[e]), rel=1e-3)
        assert mine < output_error(other, weight[e], inputs[e])


@pytest.mark.parametrize("lead", [(), (3,)], ids=["layer", "experts"])
def test_weights_encoded_together_are_as_good_as_alone(lead):
    """Rows are independent, but products of other shapes round differently, and so do codes."""
    inputs = [correlated_inputs(seed=seed) for seed in range(3 if lead else 1)]
    covariance = mx.stack([covariance_of(x) for x in inputs]).reshape(*lead, WIDTH, WIDTH)
    parts = [
        (random_weight(*lead, rows, WIDTH, dtype=mx.bfloat16, seed=rows), QuantFormat(bits, 32))
        for rows, bits in ((16, 2), (8, 2), (24, 4), (16, 3))
    ]
    inverse_hessian = InverseHessian.of(covariance, 32)
    together = encode_batch(parts, inverse_hessian, num_sweeps=1)
    for (weight, fmt), found in zip(parts, together, strict=True):
        alone = encode_gptq(weight, inverse_hessian, fmt, num_sweeps=1)
        assert found.fmt == fmt
        assert {k: a.shape for k, a in found.arrays.items()} == {
            k: a.shape for k, a in alone.arrays.items()
        }
        errors = [decode(each) - weight for each in (found, alone)]
        losses = [scalar(mx.sum((error @ covariance) * error)) for error in errors]
        assert losses[0] == pytest.approx(losses[1], rel=0.05)


@pytest.mark.parametrize("moved_from", ["targets", "codes"])
@pytest.mark.parametrize("lead", [(), (2,)], ids=["layer", "experts"])
def test_the_cpu_and_the_other_devices_round_in_the_same_turn(lead, moved_from):
    rng, size, rows = np.random.default_rng(0), 40, 24
    targets = mx.array(rng.uniform(-1, 8, (*lead, size, rows)).astype(np.float32))
    coupling = mx.array(rng.normal(0, 0.1, (*lead, size, size)).astype(np.float32))
    top = mx.array(rng.choice([3.0, 7.0], rows).astype(np.float32))
    old = mx.clip(mx.round(targets + 0.7), 0, top) if moved_from == "codes" else None
    codes, moves = _round_by_numpy(targets, coupling, top, old)
    same_codes, same_moves = _round_by_mlx(targets, coupling, top, old)
    assert mx.array_equal(codes, same_codes).item()
    np.testing.assert_allclose(moves, same_moves, atol=1e-4)
    assert mx.all((codes >= 0) & (codes <= top)).item()


def test_encoding_twice_gives_the_same_bits():
    weight, covariance = random_weight(8, WIDTH), covariance_of(correlated_inputs())
    first, second = (fed_back(weight, covariance, QuantFormat(3, 32)) for _ in "ab")
    for name, array in first.arrays.items():
        assert mx.array_equal(array, second.arrays[name]).item()


def test_conditional_variances_predict_the_loss_of_gptq_better_than_second_moments():
    weight, inputs = random_weight(64, WIDTH), correlated_inputs()
    covariance, fmt = covariance_of(inputs), QuantFormat(4, 32)
    stored = fed_back(weight, covariance, fmt)
    loss = output_error(stored, weight, inputs)
    squares = mx.square(decode(least_squares(weight, covariance, fmt)) - weight)
    predicted = scalar((squares * conditional_variances(covariance, 32)).sum())
    naive = scalar((squares * mx.diagonal(covariance)).sum())
    assert abs(np.log(predicted / loss)) < abs(np.log(naive / loss))
    assert loss < predicted < 3 * loss
