from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dynquant.quant.mlx.hessians import (
    HessianObserver,
    InputHessian,
    takes_feedback,
    towards_mean_expert,
)
from dynquant.quant.mlx.observing import Observation, Role

PRIOR = 16.0
WIDTH = 32


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def see(
    watcher: HessianObserver,
    path: str,
    x: mx.array,
    role: Role = Role.LINEAR,
    experts: mx.array | None = None,
) -> None:
    y = mx.zeros((1,))
    assert watcher(Observation(path, role, x, y, experts)) is y


def moments_of(watcher: HessianObserver, path: str, role: Role = Role.LINEAR) -> InputHessian:
    moments = watcher.of(path, role)
    assert moments is not None
    return moments


def test_a_linear_layer_sums_squares_and_products_over_batches():
    watcher = HessianObserver({"a": (4, WIDTH)}, covariance=True)
    batches = [random(2, 5, WIDTH, seed=s) for s in range(2)]
    for batch in batches:
        see(watcher, "a", batch)
        mx.eval(watcher.pending())
    flat = np.concatenate([np.asarray(batch).reshape(-1, WIDTH) for batch in batches])
    moments = moments_of(watcher, "a")
    np.testing.assert_allclose(moments.inputs, np.square(flat).sum(0), rtol=1e-5)
    np.testing.assert_allclose(watcher.covariance("a", Role.LINEAR), flat.T @ flat, atol=1e-3)
    assert moments.num_vectors.item() == 20


def test_sums_are_float32_whatever_goes_in():
    watcher = HessianObserver({"a": (4, WIDTH)}, covariance=True)
    see(watcher, "a", mx.full((1, 4000, WIDTH), 8.0, dtype=mx.bfloat16))
    moments = moments_of(watcher, "a")
    assert moments.inputs.tolist() == [256000.0] * WIDTH
    assert {array.dtype for array in moments.arrays()} == {mx.float32}


def test_a_lookup_counts_its_tokens():
    watcher = HessianObserver({"embed": (5, 8)}, covariance=True)
    see(watcher, "embed", mx.array([[0, 3, 3], [4, 3, 0]]), Role.LOOKUP)
    moments = moments_of(watcher, "embed", Role.LOOKUP)
    assert moments.inputs.tolist() == [2, 0, 0, 3, 1]
    assert moments.num_vectors.item() == 6
    assert moments.covariance is None


def test_experts_have_sums_of_their_own():
    """Four rows routed to two of three experts each, as a switch layer gets them."""
    watcher = HessianObserver({"e": (3, 4, WIDTH)}, covariance=True)
    x, experts = random(4, 1, 1, WIDTH), mx.array([[0, 1], [1, 0], [0, 1], [1, 1]])
    see(watcher, "e", x, Role.SWITCH, experts)
    flat, moments = np.asarray(x).reshape(4, WIDTH), moments_of(watcher, "e", Role.SWITCH)
    assert moments.num_vectors.tolist() == [[3], [5], [0]]
    for e, rows in enumerate([[0, 1, 2], [0, 1, 2, 3, 3], []]):
        np.testing.assert_allclose(moments.inputs[e], np.square(flat[rows]).sum(0), rtol=1e-5)
        assert moments.covariance is not None
        np.testing.assert_allclose(moments.covariance[e], flat[rows].T @ flat[rows], atol=1e-3)


def test_an_expert_without_tokens_stands_at_the_mean_of_the_others():
    watcher = HessianObserver({"e": (3, 4, WIDTH)}, covariance=True)
    experts = mx.array([[0], [1], [0], [1]])
    see(watcher, "e", random(4, 1, 1, WIDTH), Role.SWITCH, experts)
    raw = moments_of(watcher, "e", Role.SWITCH)
    smoothed = raw.smoothed()
    total = raw.inputs.sum(0)
    np.testing.assert_allclose(smoothed.inputs[2], PRIOR * total / 4, rtol=1e-5)
    np.testing.assert_allclose(smoothed.inputs[0], raw.inputs[0] + PRIOR * total / 4, rtol=1e-5)
    assert raw.covariance is not None
    expected = raw.covariance[2] + PRIOR * raw.covariance.sum(0) / 4
    np.testing.assert_allclose(watcher.covariance("e", Role.SWITCH)[2], expected, rtol=1e-5)


def test_means_of_experts_are_pulled_towards_the_mean_of_all_tokens():
    counts = mx.array([[1000.0], [16.0], [0.0]])
    means = mx.array([[1.0], [3.0], [0.0]])
    overall = (1000 * 1 + 16 * 3) / 1016
    found = towards_mean_expert(means, counts)[:, 0].tolist()
    expected = [(1000 + 16 * overall) / 1016, (48 + 16 * overall) / 32, overall]
    assert found == pytest.approx(expected)


def test_a_layer_that_is_not_of_experts_is_not_smoothed():
    moments = InputHessian(mx.ones(3), mx.array(5.0))
    assert moments.smoothed() is moments


def test_heads_have_sums_of_their_own():
    watcher = HessianObserver({"h": (3, 4, WIDTH)}, covariance=True)
    x = random(2, 3, 5, WIDTH)
    see(watcher, "h", x, Role.HEADS)
    moments, by_head = moments_of(watcher, "h", Role.HEADS), np.asarray(x).transpose(1, 0, 2, 3)
    assert moments.num_vectors.item() == 10
    assert moments.covariance is not None
    for head in range(3):
        flat = by_head[head].reshape(-1, WIDTH)
        np.testing.assert_allclose(moments.inputs[head], np.square(flat).sum(0), rtol=1e-5)
        np.testing.assert_allclose(moments.covariance[head], flat.T @ flat, atol=1e-3)


def test_a_head_shared_by_all_gives_each_the_same_sums():
    watcher = HessianObserver({"h": (3, 4, WIDTH)}, covariance=False)
    see(watcher, "h", random(2, 1, 5, WIDTH), Role.HEADS)
    inputs = moments_of(watcher, "h", Role.HEADS).inputs
    assert inputs.shape == (3, WIDTH)
    assert mx.array_equal(inputs[0], inputs[2]).item()


def test_a_transposed_weight_takes_no_feedback():
    watcher = HessianObserver({"h": (3, 4, WIDTH)}, covariance=True)
    see(watcher, "h", random(2, 3, 5, 4), Role.TRANSPOSED)
    assert moments_of(watcher, "h", Role.TRANSPOSED).inputs.shape == (3, 4)
    assert not takes_feedback(watcher, "h")


def test_layers_that_share_an_input_share_its_sums():
    watcher = HessianObserver(
        {"q": (4, WIDTH), "k": (2, WIDTH), "o": (WIDTH, WIDTH)}, covariance=True
    )
    for seed in range(2):
        x = random(2, 5, WIDTH, seed=seed)
        see(watcher, "q", x)
        see(watcher, "k", x)
        see(watcher, "o", random(2, 5, WIDTH, seed=9))
        assert len(watcher.pending()) == 4  # two sums of `q`, two of `o`
    assert watcher.of("q", Role.LINEAR) is watcher.of("k", Role.LINEAR)
    assert watcher.of("q", Role.LINEAR) is not watcher.of("o", Role.LINEAR)
    assert watcher.roles() == [("q", Role.LINEAR), ("k", Role.LINEAR), ("o", Role.LINEAR)]


def test_an_input_in_two_roles_is_summed_twice():
    watcher = HessianObserver({"h": (3, 4, WIDTH), "a": (4, WIDTH)}, covariance=False)
    x = random(2, 3, 5, WIDTH)
    see(watcher, "h", x, Role.HEADS)
    see(watcher, "a", x)
    assert moments_of(watcher, "h", Role.HEADS).inputs.shape == (3, WIDTH)
    assert moments_of(watcher, "a").inputs.shape == (WIDTH,)


def test_nothing_is_known_of_a_layer_that_never_ran():
    watcher = HessianObserver({"a": (4, WIDTH)}, covariance=True)
    assert watcher.of("a", Role.LINEAR) is None
    assert not takes_feedback(watcher, "a")


def test_what_runs_while_paused_does_not_count():
    watcher = HessianObserver({"a": (4, WIDTH)}, covariance=False)
    see(watcher, "a", mx.ones((1, WIDTH)))
    with watcher.paused():
        see(watcher, "a", mx.ones((1, WIDTH)))
    see(watcher, "a", mx.ones((1, WIDTH)))
    assert moments_of(watcher, "a").inputs.tolist() == [2.0] * WIDTH


def test_a_tied_weight_takes_no_feedback():
    watcher = HessianObserver({"embed": (5, WIDTH)}, covariance=True)
    see(watcher, "embed", random(1, WIDTH))
    assert takes_feedback(watcher, "embed")
    see(watcher, "embed", mx.array([1, 2]), Role.LOOKUP)
    assert not takes_feedback(watcher, "embed")


def test_dropped_covariances_leave_the_squares():
    watcher = HessianObserver({"a": (4, WIDTH)}, covariance=True)
    see(watcher, "a", mx.ones((2, WIDTH)))
    watcher.drop_covariances()
    assert not takes_feedback(watcher, "a")
    assert moments_of(watcher, "a").inputs.tolist() == [2.0] * WIDTH


def test_what_was_forgotten_is_gathered_anew():
    watcher = HessianObserver({"a": (4, WIDTH), "b": (4, WIDTH)}, covariance=True)
    for path in "ab":
        see(watcher, path, mx.ones((2, WIDTH)))
    watcher.pending()
    watcher.forget({"a"})
    assert watcher.of("a", Role.LINEAR) is None
    see(watcher, "a", mx.ones((3, WIDTH)))
    assert moments_of(watcher, "a").num_vectors.item() == 3
    assert moments_of(watcher, "b").num_vectors.item() == 2


def test_sums_of_two_parts_add_up():
    parts = []
    for seed in range(2):
        watcher = HessianObserver({"a": (4, WIDTH)}, covariance=True)
        see(watcher, "a", random(3, WIDTH, seed=seed))
        parts.append(moments_of(watcher, "a"))
    both = parts[0] + parts[1]
    assert both.num_vectors.item() == 6
    assert both.covariance is not None
    np.testing.assert_allclose(mx.diagonal(both.covariance), both.inputs, rtol=1e-5)
    assert (InputHessian(mx.ones(WIDTH), mx.array(1.0)) + parts[0]).covariance is None


def test_a_layer_too_wide_for_a_covariance_keeps_only_its_squares():
    """2^16 inputs: their products would take 16 GB. Nothing is evaluated here."""
    watcher = HessianObserver({"a": (4, 1 << 16)}, covariance=True)
    see(watcher, "a", mx.zeros((1, 1 << 16)))
    assert moments_of(watcher, "a").covariance is None
    assert not takes_feedback(watcher, "a")


def test_a_width_without_whole_groups_keeps_only_its_squares():
    watcher = HessianObserver({"a": (4, 40)}, covariance=True)
    see(watcher, "a", random(2, 40))
    assert moments_of(watcher, "a").inputs.shape == (40,)
    assert not takes_feedback(watcher, "a")
