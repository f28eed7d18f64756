from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.quant.mlx.inverse_hessian import InverseHessian, conditional_variances
from tests.quant.mlx.factories import WIDTH, correlated_inputs, covariance_of

DAMPING = 0.01


def random_covariance(width: int, *lead: int, seed: int = 0) -> mx.array:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(*lead, 40, width)) * rng.lognormal(0, 0.7, width)
    return mx.array((inputs.swapaxes(-1, -2) @ inputs).astype(np.float32))


def damped_in_order(inverse_hessian: InverseHessian) -> np.ndarray:
    """C + D in the order of encoding, in float64; of one layer."""
    order = np.asarray(inverse_hessian.order)
    covariance = np.asarray(inverse_hessian.hessian, np.float64)[np.ix_(order, order)]
    return covariance + np.diag(np.asarray(inverse_hessian.ridge, np.float64))


def expert(inverse_hessian: InverseHessian, e: int) -> InverseHessian:
    panels = tuple(panel[e] for panel in inverse_hessian.panels)
    assert inverse_hessian.hessian is not None
    return InverseHessian(
        inverse_hessian.order[e], inverse_hessian.hessian[e], inverse_hessian.ridge[e], panels
    )


def whole_factor(inverse_hessian: InverseHessian, group_size: int) -> np.ndarray:
    width = inverse_hessian.order.shape[-1]
    rows = [
        np.pad(np.asarray(inverse_hessian.factor(start, start + group_size)), ((0, 0), (start, 0)))
        for start in range(0, width, group_size)
    ]
    return np.concatenate(rows).astype(np.float64)


@settings(max_examples=25)
@given(groups=st.integers(1, 44), group_size=st.sampled_from([32, 64]), seed=st.integers(0, 99))
def test_the_factor_is_upper_and_that_of_the_inverse_however_many_panels_it_takes(
    groups, group_size, seed
):
    """One panel is 512 rows."""
    inverse_hessian = InverseHessian.of(
        random_covariance(groups * group_size, seed=seed), group_size
    )
    factor = whole_factor(inverse_hessian, group_size)
    assert np.array_equal(factor, np.triu(factor))
    assert (np.diag(factor) > 0).all()
    identity = factor @ damped_in_order(inverse_hessian) @ factor.T
    # float32 and badly conditioned matrices: the error depends on the BLAS.
    np.testing.assert_allclose(identity, np.eye(len(factor)), atol=0.1)


def test_every_expert_has_a_factor_of_its_own():
    covariances, group_size = random_covariance(640, 3), 32
    together = InverseHessian.of(covariances, group_size)
    for e in range(3):
        alone = InverseHessian.of(covariances[e], group_size)
        assert mx.array_equal(together.order[e], alone.order).item()
        for start in (0, 96, 512, 608):
            found = together.factor(start, start + group_size)[e]
            np.testing.assert_allclose(found, alone.factor(start, start + group_size), atol=1e-6)


@pytest.mark.parametrize("lead", [(), (2,)], ids=["layer", "experts"])
def test_rows_and_products_are_those_of_the_damped_hessian_in_order(lead):
    width, group_size = 640, 64
    inverse_hessian = InverseHessian.of(random_covariance(width, *lead), group_size)
    each = [expert(inverse_hessian, e) for e in range(2)] if lead else [inverse_hessian]
    expected = np.stack([damped_in_order(one) for one in each]).reshape(*lead, width, width)
    scale = np.abs(expected).max()
    rows = inverse_hessian.rows(128, 192)
    np.testing.assert_allclose(rows, expected[..., 128:192, :], atol=1e-6 * scale)
    columns = np.random.default_rng(0).normal(size=(*lead, width, 5)).astype(np.float32)
    product = inverse_hessian.times(mx.array(columns))
    np.testing.assert_allclose(product, expected @ columns, atol=1e-5 * scale)


def test_layers_with_heads_may_share_a_hessian_without_heads():
    inverse_hessian = InverseHessian.of(random_covariance(64), 32)
    columns = mx.random.normal((3, 64, 5), key=mx.random.key(0))
    for head in range(3):
        np.testing.assert_allclose(
            inverse_hessian.times(columns)[head],
            inverse_hessian.times(columns[head]),
            rtol=1e-4,
            atol=1e-2,
        )


def naive_conditional_variances(covariance: np.ndarray, group_size: int) -> np.ndarray:
    """Variance of each input given the inputs encoded after it: Schur complements."""
    diagonal = np.diag(covariance)
    masses = diagonal.reshape(-1, group_size)
    order = []
    for group in np.argsort(-masses.sum(1), kind="stable"):
        within = np.argsort(-masses[group], kind="stable")
        order += [group * group_size + column for column in within]
    damped = covariance + DAMPING * diagonal.mean() * np.eye(len(diagonal))
    found = np.zeros(len(diagonal))
    for place, column in enumerate(order):
        later = order[place + 1 :]
        across = damped[column, later]
        explained = across @ np.linalg.solve(damped[np.ix_(later, later)], across) if later else 0
        found[column] = damped[column, column] - explained
    return found


@pytest.mark.parametrize("group_size", [32, 64])
def test_conditional_variances_are_the_schur_complements(group_size):
    covariance = covariance_of(correlated_inputs())
    expected = naive_conditional_variances(np.asarray(covariance, np.float64), group_size)
    found = np.asarray(conditional_variances(covariance, group_size))
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_conditional_variances_of_independent_inputs_are_their_second_moments():
    sizes = mx.array(np.random.default_rng(0).lognormal(0, 1, WIDTH).astype(np.float32))
    found = conditional_variances(mx.diag(sizes), 32)
    assert mx.allclose(found, sizes + DAMPING * sizes.mean(), rtol=1e-5).item()


def test_an_input_that_is_always_zero_counts_for_no_more_than_the_damping():
    sizes = mx.array(np.where(np.arange(WIDTH) % 3, 1.0, 0.0).astype(np.float32))
    found = conditional_variances(mx.diag(sizes), 32)
    assert mx.allclose(found, sizes + DAMPING * sizes.mean(), rtol=1e-5).item()


def test_conditional_variances_of_experts_have_one_row_each():
    covariances = mx.stack([covariance_of(correlated_inputs(seed=seed)) for seed in range(2)])
    found = conditional_variances(covariances, 32)
    assert found.shape == (2, WIDTH)
    assert mx.all(found > 0).item()


def test_without_the_hessian_the_factor_stays():
    covariance = covariance_of(correlated_inputs())
    inverse_hessian = InverseHessian.of(covariance, 32)
    bare = inverse_hessian.without_hessian()
    assert bare.nbytes == inverse_hessian.nbytes - covariance.nbytes
    assert mx.array_equal(bare.factor(32, 64), inverse_hessian.factor(32, 64)).item()


def test_a_hessian_that_no_damping_makes_definite_is_refused():
    with pytest.raises(ValueError, match="not positive definite"):
        conditional_variances(mx.full((32, 32), float("nan")), 32)
