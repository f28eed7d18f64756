from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dynquant.quant.mlx.hessians import (
    HessianObserver,
    InputHessian,
    takes_gptq,
    towards_mean_expert,
)
from dynquant.quant.mlx.observing import Observation, Role

PRIOR = 16.0
WIDTH = 32


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def see(
    hessians: HessianObserver,
    path: str,
    x: mx.array,
    role: Role = Role.LINEAR,
    experts: mx.array | None = None,
) -> None:
    y = mx.zeros((1,))
    assert hessians(Observation(path, role, x, y, experts)) is y


def moments_of(hessians: HessianObserver, path: str, role: Role = Role.LINEAR) -> InputHessian:
    moments = hessians.of(path, role)
    assert moments is not None
    return moments


def test_a_linear_layer_sums_squares_and_products_over_batches():
    hessians = HessianObserver({"a": (4, WIDTH)}, gram=True)
    batches = [random(2, 5, WIDTH, seed=s) for s in range(2)]
    for batch in batches:
        see(hessians, "a", batch)
        mx.eval(hessians.pending())
    flat = np.concatenate([np.asarray(batch).reshape(-1, WIDTH) for batch in batches])
    moments = moments_of(hessians, "a")
    np.testing.assert_allclose(moments.inputs, np.square(flat).sum(0), rtol=1e-5)
    np.testing.assert_allclose(hessians.matrix("a", Role.LINEAR), flat.T @ flat, atol=1e-3)
    assert moments.num_vectors.item() == 20


def test_sums_are_float32_for_inputs_of_any_dtype():
    hessians = HessianObserver({"a": (4, WIDTH)}, gram=True)
    see(hessians, "a", mx.full((1, 4000, WIDTH), 8.0, dtype=mx.bfloat16))
    moments = moments_of(hessians, "a")
    assert moments.inputs.tolist() == [256000.0] * WIDTH
    assert {array.dtype for array in moments.arrays()} == {mx.float32}


def test_a_lookup_counts_its_tokens():
    hessians = HessianObserver({"embed": (5, 8)}, gram=True)
    see(hessians, "embed", mx.array([[0, 3, 3], [4, 3, 0]]), Role.LOOKUP)
    moments = moments_of(hessians, "embed", Role.LOOKUP)
    assert moments.inputs.tolist() == [2, 0, 0, 3, 1]
    assert moments.num_vectors.item() == 6
    assert moments.matrix is None


def test_experts_have_sums_of_their_own():
    """Four rows routed to two of three experts each, as a switch layer gets them."""
    hessians = HessianObserver({"e": (3, 4, WIDTH)}, gram=True)
    x, experts = random(4, 1, 1, WIDTH), mx.array([[0, 1], [1, 0], [0, 1], [1, 1]])
    see(hessians, "e", x, Role.SWITCH, experts)
    flat, moments = np.asarray(x).reshape(4, WIDTH), moments_of(hessians, "e", Role.SWITCH)
    assert moments.num_vectors.tolist() == [[3], [5], [0]]
    for e, rows in enumerate([[0, 1, 2], [0, 1, 2, 3, 3], []]):
        np.testing.assert_allclose(moments.inputs[e], np.square(flat[rows]).sum(0), rtol=1e-5)
        assert moments.matrix is not None
        np.testing.assert_allclose(moments.matrix[e], flat[rows].T @ flat[rows], atol=1e-3)


def test_an_expert_without_tokens_gets_the_mean_of_the_others():
    hessians = HessianObserver({"e": (3, 4, WIDTH)}, gram=True)
    experts = mx.array([[0], [1], [0], [1]])
    see(hessians, "e", random(4, 1, 1, WIDTH), Role.SWITCH, experts)
    raw = moments_of(hessians, "e", Role.SWITCH)
    smoothed = raw.smoothed()
    total = raw.inputs.sum(0)
    np.testing.assert_allclose(smoothed.inputs[2], PRIOR * total / 4, rtol=1e-5)
    np.testing.assert_allclose(smoothed.inputs[0], raw.inputs[0] + PRIOR * total / 4, rtol=1e-5)
    assert raw.matrix is not None
    expected = raw.matrix[2] + PRIOR * raw.matrix.sum(0) / 4
    np.testing.assert_allclose(hessians.matrix("e", Role.SWITCH)[2], expected, rtol=1e-5)


def test_means_of_experts_are_shrunk_towards_the_mean_of_all_tokens():
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
    hessians = HessianObserver({"h": (3, 4, WIDTH)}, gram=True)
    x = random(2, 3, 5, WIDTH)
    see(hessians, "h", x, Role.HEADS)
    moments, by_head = moments_of(hessians, "h", Role.HEADS), np.asarray(x).transpose(1, 0, 2, 3)
    assert moments.num_vectors.item() == 10
    assert moments.matrix is not None
    for head in range(3):
        flat = by_head[head].reshape(-1, WIDTH)
        np.testing.assert_allclose(moments.inputs[head], np.square(flat).sum(0), rtol=1e-5)
        np.testing.assert_allclose(moments.matrix[head], flat.T @ flat, atol=1e-3)


def test_a_head_shared_by_all_gives_each_the_same_sums():
    hessians = HessianObserver({"h": (3, 4, WIDTH)}, gram=False)
    see(hessians, "h", random(2, 1, 5, WIDTH), Role.HEADS)
    inputs = moments_of(hessians, "h", Role.HEADS).inputs
    assert inputs.shape == (3, WIDTH)
    assert mx.array_equal(inputs[0], inputs[2]).item()


def test_a_transposed_weight_takes_no_gptq():
    hessians = HessianObserver({"h": (3, 4, WIDTH)}, gram=True)
    see(hessians, "h", random(2, 3, 5, 4), Role.TRANSPOSED)
    assert moments_of(hessians, "h", Role.TRANSPOSED).inputs.shape == (3, 4)
    assert not takes_gptq(hessians, "h")


def test_layers_that_share_an_input_share_its_sums():
    hessians = HessianObserver({"q": (4, WIDTH), "k": (2, WIDTH), "o": (WIDTH, WIDTH)}, gram=True)
    for seed in range(2):
        x = random(2, 5, WIDTH, seed=seed)
        see(hessians, "q", x)
        see(hessians, "k", x)
        see(hessians, "o", random(2, 5, WIDTH, seed=9))
        assert len(hessians.pending()) == 4  # two sums of `q`, two of `o`
    assert hessians.of("q", Role.LINEAR) is hessians.of("k", Role.LINEAR)
    assert hessians.of("q", Role.LINEAR) is not hessians.of("o", Role.LINEAR)
    assert hessians.roles() == [("q", Role.LINEAR), ("k", Role.LINEAR), ("o", Role.LINEAR)]


def test_an_input_in_two_roles_is_summed_twice():
    hessians = HessianObserver({"h": (3, 4, WIDTH), "a": (4, WIDTH)}, gram=False)
    x = random(2, 3, 5, WIDTH)
    see(hessians, "h", x, Role.HEADS)
    see(hessians, "a", x)
    assert moments_of(hessians, "h", Role.HEADS).inputs.shape == (3, WIDTH)
    assert moments_of(hessians, "a").inputs.shape == (WIDTH,)


def test_a_layer_that_never_ran_has_no_sums():
    hessians = HessianObserver({"a": (4, WIDTH)}, gram=True)
    assert hessians.of("a", Role.LINEAR) is None
    assert not takes_gptq(hessians, "a")


def test_calls_while_paused_do_not_count():
    hessians = HessianObserver({"a": (4, WIDTH)}, gram=False)
    see(hessians, "a", mx.ones((1, WIDTH)))
    with hessians.paused():
        see(hessians, "a", mx.ones((1, WIDTH)))
    see(hessians, "a", mx.ones((1, WIDTH)))
    assert moments_of(hessians, "a").inputs.tolist() == [2.0] * WIDTH


def test_a_tied_weight_takes_no_gptq():
    hessians = HessianObserver({"embed": (5, WIDTH)}, gram=True)
    see(hessians, "embed", random(1, WIDTH))
    assert takes_gptq(hessians, "embed")
    see(hessians, "embed", mx.array([1, 2]), Role.LOOKUP)
    assert not takes_gptq(hessians, "embed")


def test_dropped_gram_matrices_leave_the_squares():
    hessians = HessianObserver({"a": (4, WIDTH)}, gram=True)
    see(hessians, "a", mx.ones((2, WIDTH)))
    hessians.drop_grams()
    assert not takes_gptq(hessians, "a")
    assert moments_of(hessians, "a").inputs.tolist() == [2.0] * WIDTH


def test_forgotten_sums_are_gathered_again():
    hessians = HessianObserver({"a": (4, WIDTH), "b": (4, WIDTH)}, gram=True)
    for path in "ab":
        see(hessians, path, mx.ones((2, WIDTH)))
    hessians.pending()
    hessians.forget({"a"})
    assert hessians.of("a", Role.LINEAR) is None
    see(hessians, "a", mx.ones((3, WIDTH)))
    assert moments_of(hessians, "a").num_vectors.item() == 3
    assert moments_of(hessians, "b").num_vectors.item() == 2


def test_sums_of_two_parts_add_up():
    parts = []
    for seed in range(2):
        hessians = HessianObserver({"a": (4, WIDTH)}, gram=True)
        see(hessians, "a", random(3, WIDTH, seed=seed))
        parts.append(moments_of(hessians, "a"))
    both = parts[0] + parts[1]
    assert both.num_vectors.item() == 6
    assert both.matrix is not None
    np.testing.assert_allclose(mx.diagonal(both.matrix), both.inputs, rtol=1e-5)
    assert (InputHessian(mx.ones(WIDTH), mx.array(1.0)) + parts[0]).matrix is None


def test_a_layer_too_wide_for_a_gram_matrix_keeps_only_its_squares():
    """2^16 inputs: their Gram matrix would take 16 GB. Nothing is evaluated here."""
    hessians = HessianObserver({"a": (4, 1 << 16)}, gram=True)
    see(hessians, "a", mx.zeros((1, 1 << 16)))
    assert moments_of(hessians, "a").matrix is None
    assert not takes_gptq(hessians, "a")


def test_a_width_without_whole_groups_keeps_only_its_squares():
    hessians = HessianObserver({"a": (4, 40)}, gram=True)
    see(hessians, "a", random(2, 40))
    assert moments_of(hessians, "a").inputs.shape == (40,)
    assert not takes_gptq(hessians, "a")
