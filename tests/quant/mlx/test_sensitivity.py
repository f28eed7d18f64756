from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.switch_layers import SwitchLinear

from dynquant.errors import NonFiniteError
from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.importance import Importance
from dynquant.quant.mlx.inverse_hessian import conditional_variances
from dynquant.quant.mlx.observing import Role
from dynquant.quant.mlx.parameters import quantizable
from dynquant.quant.mlx.sensitivity import Measurement, draw_labels, measure_importance
from tests.quant.mlx.factories import TinyModel, make_batches, make_measurement, make_model

PRIOR_TOKENS = 16.0
UNSEEN_TOKENS = 0.5


class Plus(nn.Module):
    """A layer with an array added to its output; keeps its inputs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.called = list[tuple[mx.array, ...]]()
        self.deltas: Callable[[], mx.array | None] = lambda: None

    def note(self, x: mx.array, y: mx.array, *args: mx.array) -> mx.array:
        self.called.append((x, y, *args))
        delta = self.deltas()
        return y if delta is None else y + delta

    def __call__(self, x: mx.array, *args, **kwargs) -> mx.array:
        return self.note(x, self.layer(x, *args, **kwargs), *args)

    def as_linear(self, x: mx.array) -> mx.array:
        return self.note(x, self.layer.as_linear(x))


def drawn_labels(probabilities: mx.array, seed: int) -> mx.array:
    shape = (*probabilities.shape[:-1], 1)
    return draw_labels(probabilities, mx.random.uniform(shape=shape, key=mx.random.key(seed)))


def naive_calls(
    tiny: TinyModel, path: str, batches: list[mx.array], seed: int
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """(input, gradient at the output, experts) of each call of a layer, by plain `mx.grad`."""
    found = []
    for index, batch in enumerate(batches):
        model = copy.deepcopy(tiny.plain)
        layers = quantizable(model)
        plus = Plus(layers[path])
        *parents, name = path.split(".")
        node: Any = model
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        node[name] = plus
        logits = model(batch)
        labels = drawn_labels(mx.softmax(logits, axis=-1), seed + index)
        calls = list(plus.called)
        plus.called.clear()

        def likelihood(deltas: list[mx.array], model=model, plus=plus, batch=batch, labels=labels):
            supply = iter(deltas)
            plus.deltas = lambda: next(supply)
            return -nn.losses.cross_entropy(model(batch), labels).sum()

        gradients = mx.grad(likelihood)([mx.zeros_like(call[1]) for call in calls])
        for call, gradient in zip(calls, gradients, strict=True):
            experts = np.asarray(call[2]) if len(call) > 2 else None
            found.append((np.asarray(call[0]), np.asarray(gradient), experts))
    return found


def inputs_of(tiny: TinyModel, path: str, batches: list[mx.array], *, start: int = 0) -> np.ndarray:
    """All inputs of a layer, (vectors, in); of the calls of each batch, from `start` on."""
    inputs = [
        call[0] for batch in batches for call in naive_calls(tiny, path, [batch], seed=0)[start:]
    ]
    return np.concatenate([x.reshape(-1, x.shape[-1]) for x in inputs])


def measured(measurement: Measurement) -> dict[str, Importance]:
    found: dict[str, Importance] = {}
    measure_importance(measurement, on_layers=lambda part, _held: found.update(part))
    assert set(found) == set(measurement.shapes)
    return found


def squares(arrays: list[np.ndarray]) -> np.ndarray:
    """Summed squares over everything but the last axis."""
    return sum(np.square(a.astype(np.float64)).reshape(-1, a.shape[-1]).sum(0) for a in arrays)


def test_labels_are_drawn_as_often_as_they_are_likely():
    probabilities = mx.softmax(mx.array(np.random.default_rng(0).normal(size=12)), axis=-1)
    labels = drawn_labels(mx.broadcast_to(probabilities, (40_000, 12)), seed=3)
    found = np.bincount(np.asarray(labels), minlength=12)
    expected = 40_000 * np.asarray(probabilities, np.float64)
    assert np.square((found - expected) / np.sqrt(expected)).sum() < 31.3  # chi square, p = 0.001


def test_a_label_of_probability_zero_is_never_drawn():
    probabilities = mx.tile(mx.array([0.0, 0.25, 0.0, 0.75, 0.0]), (2000, 1))
    assert set(np.asarray(drawn_labels(probabilities, seed=0))) == {1, 3}


def test_draws_depend_on_the_seed_alone():
    probabilities = mx.ones((50, 8)) / 8
    assert mx.array_equal(drawn_labels(probabilities, 1), drawn_labels(probabilities, 1)).item()
    assert not mx.array_equal(drawn_labels(probabilities, 1), drawn_labels(probabilities, 2)).item()


@pytest.fixture(scope="module")
def batches():
    return [*make_batches(2), *make_batches(1, shape=(1, 24), seed=1)]


@pytest.mark.parametrize(
    "path",
    [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.o_proj",
        "model.layers.2.mlp.down_proj",
    ],
)
def test_rows_and_columns_equal_those_from_a_plain_gradient(tied, batches, path):
    measurement = make_measurement(tied, batches, seed=11)
    (term,) = measured(measurement)[path].terms
    calls = naive_calls(tied, path, batches, seed=11)
    num_tokens = sum(batch.size for batch in batches)
    columns, rows = squares([c[0] for c in calls]), squares([c[1] for c in calls])
    np.testing.assert_allclose(term.cols, columns / num_tokens, rtol=1e-4)
    np.testing.assert_allclose(term.rows, rows / num_tokens, rtol=2e-3, atol=1e-9)


def test_a_tied_embedding_has_a_term_for_each_of_its_roles(tied, batches):
    path, num_tokens = "model.embed_tokens", sum(batch.size for batch in batches)
    linear, lookup = measured(make_measurement(tied, batches))[path].terms
    calls = naive_calls(tied, path, batches, seed=0)
    looked_up = [call for call in calls if call[0].dtype == np.int32]
    as_head = [call for call in calls if call[0].dtype != np.int32]
    counts = np.bincount(np.concatenate([c[0].ravel() for c in looked_up]), minlength=128)
    np.testing.assert_allclose(
        lookup.rows, (counts + UNSEEN_TOKENS) / (num_tokens + 128 * UNSEEN_TOKENS), rtol=1e-5
    )
    np.testing.assert_allclose(
        lookup.cols, squares([c[1] for c in looked_up]) / num_tokens, rtol=2e-3
    )
    np.testing.assert_allclose(
        linear.cols, squares([c[0] for c in as_head]) / num_tokens, rtol=1e-4
    )
    np.testing.assert_allclose(
        linear.rows, squares([c[1] for c in as_head]) / num_tokens, rtol=2e-3, atol=1e-9
    )


def test_an_untied_embedding_and_its_head_have_one_term_each(experts, batches):
    found = measured(make_measurement(experts, batches))
    assert len(found["model.embed_tokens"].terms) == 1
    assert len(found["lm_head"].terms) == 1


@pytest.mark.parametrize("length", [8, 64], ids=["unsorted", "sorted"])
@pytest.mark.parametrize("name", ["up_proj", "down_proj"])
def test_experts_have_rows_and_columns_of_their_own(experts, name, length):
    batches = make_batches(2, shape=(1, length))
    path = f"model.layers.1.mlp.switch_mlp.{name}"
    (term,) = measured(make_measurement(experts, batches))[path].terms
    num_tokens, num_experts = sum(batch.size for batch in batches), term.rows.shape[0]
    inputs, gradients = np.zeros(term.cols.shape), np.zeros(term.rows.shape)
    taken = np.zeros((num_experts, 1))
    for x, g, chosen in naive_calls(experts, path, batches, seed=0):
        assert chosen is not None
        rows = np.broadcast_to(x[..., 0, :], (*chosen.shape, x.shape[-1])).reshape(-1, x.shape[-1])
        for expert, row, gradient in zip(
            chosen.ravel(), rows, g.reshape(-1, g.shape[-1]), strict=True
        ):
            inputs[expert] += np.square(row)
            gradients[expert] += np.square(gradient)
            taken[expert] += 1
    total = taken.sum()
    columns = (inputs + PRIOR_TOKENS * inputs.sum(0) / total) / num_tokens
    pooled = gradients.sum(0) / total
    expected_rows = (gradients + PRIOR_TOKENS * pooled) / (taken + PRIOR_TOKENS)
    np.testing.assert_allclose(term.cols, columns, rtol=1e-4)
    np.testing.assert_allclose(term.rows, expected_rows, rtol=2e-3, atol=1e-9)


def test_absorbed_matrices_are_measured_in_both_directions():
    """deepseek_v3 multiplies by one factor of its cache from either side."""
    tiny = make_model("deepseek_v3")
    found = measured(make_measurement(tiny, make_batches(1, shape=(1, 12))))
    for name in ("embed_q", "unembed_out"):
        importance = found[f"model.layers.0.self_attn.{name}"]
        assert importance.terms
        for term in importance.terms:
            shape = tiny.weights[f"model.layers.0.self_attn.{name}.weight"].shape
            assert (*term.rows.shape, term.cols.shape[-1]) == tuple(shape)


def test_a_looped_model_adds_both_passes_up():
    tiny, batches = make_model("nanbeige"), make_batches(1, shape=(2, 12))
    path = "model.layers.1.mlp.down_proj"
    (term,) = measured(make_measurement(tiny, batches))[path].terms
    calls = naive_calls(tiny, path, batches, seed=0)
    assert len(calls) == 2
    columns, rows = squares([c[0] for c in calls]), squares([c[1] for c in calls])
    num_tokens = batches[0].size
    np.testing.assert_allclose(term.cols, columns / num_tokens, rtol=1e-4)
    np.testing.assert_allclose(term.rows, rows / (2 * num_tokens), rtol=2e-3, atol=1e-9)


@pytest.mark.parametrize("path", ["model.layers.1.mlp.down_proj", "lm_head"])
def test_with_gptq_columns_are_the_variance_that_later_inputs_leave(batches, path):
    tiny = make_model(tie_word_embeddings=False)
    (term,) = measured(make_measurement(tiny, batches, gptq=True))[path].terms
    inputs = inputs_of(tiny, path, batches)
    expected = conditional_variances(mx.array(inputs.T @ inputs), 32) / len(inputs)
    np.testing.assert_allclose(term.cols, expected, rtol=1e-2)


def test_only_gram_matrices_of_layers_outside_the_blocks_are_kept(tied, batches):
    """A tied embedding is encoded with the Gram matrix of its head's inputs, in the probes too."""
    measurement = make_measurement(tied, batches, gptq=True)
    hessians = measure_importance(measurement, on_layers=lambda _part, _held: None)
    head = hessians.of("model.embed_tokens", Role.LINEAR)
    seen = [hessians.of(*key) for key in hessians.roles()]
    kept = [hessian for hessian in seen if hessian and hessian.gram]
    assert head is not None
    assert kept == [head]
    assert head.matrix is not None
    inputs = inputs_of(tied, "model.embed_tokens", batches, start=1)
    np.testing.assert_allclose(head.matrix, inputs.T @ inputs, rtol=1e-3, atol=1e-3)
    assert head.num_vectors.item() == len(inputs)


def test_measuring_twice_gives_the_same_numbers(tied, batches):
    first, second = (measured(make_measurement(tied, batches, seed=3)) for _ in range(2))
    other = measured(make_measurement(tied, batches, seed=4))
    for path, importance in first.items():
        for a, b in zip(importance.terms, second[path].terms, strict=True):
            assert mx.array_equal(a.rows, b.rows).item()
            assert mx.array_equal(a.cols, b.cols).item()
    path = "model.layers.0.mlp.up_proj"
    assert not mx.allclose(first[path].terms[0].rows, other[path].terms[0].rows).item()


def test_blocks_are_reported_backwards_and_the_layers_outside_them_last(tied, batches):
    order, steps = [], []
    measurement = make_measurement(tied, batches)

    def on_layers(part: Mapping[str, Importance], held: Weights) -> None:
        order.append({measurement.blocks.block_of(path) for path in part})
        assert all(held[f"{path}.weight"].size for path in part)

    measure_importance(measurement, on_layers=on_layers, on_step=lambda: steps.append(1))
    blocks = list(measurement.blocks.blocks)
    assert order == [{block} for block in (*blocks[::-1], None)]
    assert len(steps) == 3 + 4


def test_a_layer_that_never_runs_has_no_terms(tied, batches):
    """A layer that the model has and does not call."""
    measurement = make_measurement(tied, batches)
    blocks = measurement.blocks
    blocks.blocks["model.layers.0"].spare = nn.Linear(4, 4, bias=False)
    shapes = {**measurement.shapes, "model.layers.0.spare": (4, 4)}
    weights = {**tied.weights, "model.layers.0.spare.weight": mx.ones((4, 4))}
    spare = Measurement(blocks, lambda: dict(weights), batches, shapes, gptq=True, seed=0)
    assert measured(spare)["model.layers.0.spare"].terms == ()


@pytest.mark.parametrize(
    "path", ["model.layers.0.mlp.up_proj", "model.layers.2.mlp.down_proj", "model.embed_tokens"]
)
def test_a_weight_that_is_not_finite_is_an_error(tied, batches, path):
    def damage(name: str, array: mx.array) -> mx.array:
        fifth = mx.arange(array.size).reshape(array.shape) == 5
        return mx.where(fifth, mx.nan, array) if name == f"{path}.weight" else array

    measurement = make_measurement(tied.with_weights(damage), batches)
    with pytest.raises(NonFiniteError) as raised:
        measured(measurement)
    assert raised.value.layer in measurement.shapes
    assert raised.value.layer in str(raised.value)


def test_the_fixture_with_experts_has_six_switch_layers(experts):
    kinds = [type(layer) for layer in quantizable(experts.plain).values()]
    assert kinds.count(SwitchLinear) == 6
