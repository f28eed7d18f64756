from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.mla import MultiLinear
from mlx_lm.models.switch_layers import SwitchLinear

from dynquant.quant.mlx.observing import Observation, Role, observed, squares

Pair = namedtuple("Pair", "first second")


class Recorder:
    """Keeps the observations; returns the output, changed by `change`."""

    def __init__(self, change: Callable[[mx.array], mx.array] = lambda y: y) -> None:
        self.seen: list[Observation] = []
        self.change = change

    def __call__(self, seen: Observation) -> mx.array:
        self.seen.append(seen)
        return self.change(seen.y)


class Fused(nn.Linear):
    """A layer whose output comes in parts of different widths."""

    kind: type = tuple

    def __call__(self, x):
        parts = mx.split(super().__call__(x), [2, 5], axis=-1)
        return self.kind(parts)


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def test_a_linear_layer_reports_its_input_and_output():
    layer, recorder, x = nn.Linear(6, 4), Recorder(), random(2, 3, 6)
    expected = layer(x)
    with observed({"a.b": layer}, recorder):
        y = layer(x)
    assert mx.array_equal(y, expected).item()
    (seen,) = recorder.seen
    assert (seen.path, seen.role, seen.experts) == ("a.b", Role.LINEAR, None)
    assert seen.x is x
    assert seen.y is y


def test_the_model_goes_on_with_the_array_that_the_observer_returns():
    layer, x = nn.Linear(6, 4), random(2, 6)
    with observed({"a": layer}, Recorder(lambda y: 2 * y)):
        doubled = layer(x)
    assert mx.array_equal(doubled, 2 * layer(x)).item()


def test_an_embedding_has_two_roles():
    layer, recorder = nn.Embedding(5, 6), Recorder()
    with observed({"e": layer}, recorder):
        hidden = layer(mx.array([1, 2]))
        layer.as_linear(hidden)
    assert [seen.role for seen in recorder.seen] == [Role.LOOKUP, Role.LINEAR]
    assert [seen.y.shape for seen in recorder.seen] == [(2, 6), (2, 5)]


@pytest.mark.parametrize("by_name", [False, True])
def test_a_switch_layer_says_which_experts_it_took(by_name):
    layer, recorder, experts = SwitchLinear(6, 4, 3), Recorder(), mx.array([[0, 2], [1, 1]])
    x = random(2, 1, 1, 6)
    with observed({"s": layer}, recorder):
        y = layer(x, indices=experts) if by_name else layer(x, experts)
    (seen,) = recorder.seen
    assert seen.role is Role.SWITCH
    assert seen.experts is experts
    assert y.shape == (2, 2, 1, 4)


def test_an_absorbed_matrix_says_which_way_it_acts():
    layer, recorder = MultiLinear(6, 4, 3), Recorder()
    with observed({"m": layer}, recorder):
        layer(random(1, 3, 2, 6))
        layer(random(1, 3, 2, 4), transpose=False)
        layer(random(1, 3, 2, 4), False)
    roles = [seen.role for seen in recorder.seen]
    assert roles == [Role.HEADS, Role.TRANSPOSED, Role.TRANSPOSED]


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_fused_layer_counts_as_one_matrix(kind):
    layer, recorder, x = Fused(6, 9, bias=False), Recorder(lambda y: -y), random(2, 6)
    layer.kind = kind
    whole = nn.Linear.__call__(layer, x)
    with observed({"f": layer}, recorder):
        parts = layer(x)
    assert type(parts) is kind
    assert [part.shape[-1] for part in parts] == [2, 3, 4]
    assert mx.array_equal(mx.concatenate(list(parts), -1), -whole).item()
    assert mx.array_equal(recorder.seen[0].y, whole).item()


def test_layers_are_as_before_once_the_watching_ends():
    layers: dict[str, nn.Module] = {"a": nn.Linear(6, 4), "b": nn.Embedding(5, 6)}
    recorder = Recorder()
    with pytest.raises(KeyError), observed(layers, recorder):
        raise KeyError
    assert type(layers["a"]) is nn.Linear
    assert type(layers["b"]) is nn.Embedding
    layers["a"](random(1, 6))
    assert not recorder.seen


def test_two_observers_can_watch_the_same_layer():
    layer, order = nn.Linear(6, 4), list[str]()

    def note(name: str) -> Callable[[Observation], mx.array]:
        def observer(seen: Observation) -> mx.array:
            order.append(name)
            return seen.y

        return observer

    with observed({"a": layer}, note("outer")), observed({"a": layer}, note("inner")):
        layer(random(1, 6))
    # The inner context wraps what the outer one made of the layer.
    assert order == ["outer", "inner"]


def test_squares_of_a_linear_layer_sum_over_everything_but_the_width():
    x = random(2, 3, 6)
    expected = np.square(np.asarray(x)).reshape(-1, 6).sum(0)
    np.testing.assert_allclose(squares(x, Role.LINEAR, None, ()), expected, rtol=1e-6)


def test_squares_of_a_switch_layer_go_to_the_expert_of_each_row():
    """In as (rows, 1, 1, in), out as (rows, k, 1, out): both have one expert per row and k."""
    experts = mx.array([[0, 2], [2, 2]])
    y = random(2, 2, 1, 6)
    found = squares(y, Role.SWITCH, experts, (3,))
    by_row = np.square(np.asarray(y)).reshape(-1, 6)
    expected = np.stack([by_row[0], np.zeros(6), by_row[1:].sum(0)])
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_squares_of_sorted_switch_rows_are_the_same():
    """With many tokens mlx-lm sorts rows by expert: (rows, 1, in) and (rows,) indices."""
    x, experts = random(5, 1, 6), mx.array([0, 0, 1, 2, 2])
    found = squares(x, Role.SWITCH, experts, (3,))
    np.testing.assert_allclose(found[0], np.square(np.asarray(x))[:2].sum((0, 1)), rtol=1e-6)
