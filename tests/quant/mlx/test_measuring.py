from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from dynquant.errors import NonFiniteError
from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx import measuring
from dynquant.quant.mlx.arrays import scalar
from dynquant.quant.mlx.encoding import decode, encode, encode_min_max
from dynquant.quant.mlx.importance import Importance, Term
from dynquant.quant.mlx.measuring import Costs, format_costs, measure_costs, sample_layer
from dynquant.quant.recipe import EFFORTS
from tests.quant.mlx.factories import (
    TinyModel,
    make_batches,
    make_measurement,
    make_model,
    make_profiles,
)

MENU = [QuantFormat.from_name(name) for name in ("2g64", "3g64", "4g64", "5g64", "6g64", "8g64")]
UNQUANTIZED = QuantFormat.from_name("unquantized")


def lognormal(*shape: int, seed: int, spread: float = 1.0) -> mx.array:
    return mx.array(np.random.default_rng(seed).lognormal(0, spread, shape).astype(np.float32))


def random_weight(*shape: int, dtype: mx.Dtype = mx.bfloat16) -> mx.array:
    values = np.random.default_rng(0).standard_t(5, shape) * 0.05
    return mx.array(values.astype(np.float32)).astype(dtype)


def random_importance(*shape: int, spread: float = 1.5, num_terms: int = 1) -> Importance:
    *lead, outputs, inputs = shape
    return Importance(
        tuple(
            Term(
                lognormal(*lead, outputs, seed=s, spread=spread),
                lognormal(*lead, inputs, seed=s + 9),
            )
            for s in range(num_terms)
        )
    )


def costs_of(
    weight: mx.array,
    importance: Importance,
    formats: Sequence[QuantFormat],
    *,
    search: bool = True,
) -> tuple[float, ...]:
    return format_costs([sample_layer(weight, importance, formats)], search=search)[0]


def full_costs(weight: mx.array, importance: Importance, formats: list[QuantFormat]) -> list[float]:
    """Half the weighted squared error over all rows."""
    importances = importance.of_rows(mx.arange(weight.size // weight.shape[-1]))
    costs = []
    for fmt in formats:
        error = decode(encode(weight, lambda rows: importances[rows], fmt)) - weight.astype(
            mx.float32
        )
        costs.append(
            0.5 * scalar((importances * mx.square(error).reshape(importances.shape)).sum())
        )
    return costs


def run(
    tiny: TinyModel, *, encoder: str = "wls", formats: str | None = None, steps: list | None = None
) -> Costs:
    measurement = make_measurement(tiny, gptq=encoder == "gptq")
    profiles = make_profiles(measurement, **({"formats": formats} if formats else {}))
    return measure_costs(
        measurement,
        profiles,
        encoder=encoder,
        effort=EFFORTS["normal"],
        probe_windows=make_batches(1, seed=5),
        on_step=[].append if steps is None else steps.append,
    )


@pytest.mark.parametrize("shape", [(64, 128), (3, 16, 128)])
def test_the_cost_of_a_small_layer_is_its_whole_weighted_error(shape):
    weight, importance = random_weight(*shape), random_importance(*shape, num_terms=2)
    costs = costs_of(weight, importance, MENU)
    assert costs == pytest.approx(full_costs(weight, importance, MENU), rel=1e-4)


@pytest.mark.parametrize("shape", [(4000, 256), (8, 1000, 256)])
@pytest.mark.parametrize("spread", [0.5, 2.5])
def test_the_cost_of_a_large_layer_is_estimated_to_within_a_few_percent(shape, spread):
    """A million weights, a sixtieth of them sampled."""
    weight, importance = random_weight(*shape), random_importance(*shape, spread=spread)
    formats = [QuantFormat(2, 64), QuantFormat(4, 64)]
    costs = costs_of(weight, importance, formats)
    assert costs == pytest.approx(full_costs(weight, importance, formats), rel=0.04)


def test_layers_encoded_together_have_the_costs_of_layers_alone():
    shapes = [(64, 128), (4000, 256), (64, 64), (3, 16, 128)]
    layers = [(random_weight(*s), random_importance(*s)) for s in shapes]
    samples = [sample_layer(weight, importance, MENU) for weight, importance in layers]
    alone = [costs_of(weight, importance, MENU) for weight, importance in layers]
    together = format_costs(samples, search=True)
    assert [list(c) for c in together] == [pytest.approx(c, rel=1e-6) for c in alone]


def test_rows_without_importance_are_not_sampled():
    weight = random_weight(4000, 256)
    rows = mx.where(mx.arange(4000) % 8 == 0, 1.0, 0.0)
    importance = Importance((Term(rows, mx.ones(256)),))
    formats = [QuantFormat(3, 64)]
    (cost,) = costs_of(weight, importance, formats)
    assert cost == pytest.approx(full_costs(weight, importance, formats)[0], rel=0.06)


@pytest.mark.parametrize("search", [True, False])
def test_costs_fall_with_every_bit_and_vanish_unquantized(search):
    weight, importance = random_weight(64, 128), random_importance(64, 128)
    costs = costs_of(weight, importance, [*MENU, UNQUANTIZED], search=search)
    assert list(costs) == sorted(costs, reverse=True)
    assert len(set(costs)) == len(costs)
    assert costs[-1] == 0


def test_the_search_costs_less_than_minimum_and_maximum():
    weight, importance = random_weight(64, 128), random_importance(64, 128)
    searched, plain = (costs_of(weight, importance, MENU, search=s) for s in (True, False))
    assert all(a <= b for a, b in zip(searched, plain, strict=True))
    assert searched[0] < 0.8 * plain[0]


def test_weights_on_the_grid_of_a_format_cost_nothing_there():
    fmt = QuantFormat(4, 32)
    plain = [mx.array(np.random.default_rng(n).normal(size=(8, 64))) for n in range(2)]
    plain = [weight.astype(mx.bfloat16) for weight in plain]
    quantized = decode(encode_min_max(plain[0], fmt)).astype(mx.bfloat16)
    formats = (QuantFormat(3, 32), fmt, QuantFormat(8, 32))
    samples = [sample_layer(each, Importance(()), formats) for each in (quantized, plain[1])]
    on_grid, other = format_costs(samples, search=True)
    assert on_grid[1] == 0 < on_grid[2] < on_grid[0]
    assert 0 < other[2] < other[1] < other[0]


def test_without_importance_costs_are_squared_errors():
    weight, fmt = random_weight(8, 128), QuantFormat(4, 64)
    (cost,) = costs_of(weight, Importance(()), [fmt])
    error = decode(encode(weight, lambda rows: mx.ones((1, 1)), fmt)) - weight.astype(mx.float32)
    assert cost == pytest.approx(0.5 * mx.square(error).sum().item(), rel=1e-5)


@pytest.mark.parametrize("encoder", ["wls", "gptq", "minmax"])
def test_every_layer_gets_a_cost_for_each_of_its_formats(tied, encoder):
    steps: list[str] = []
    costs = run(tied, encoder=encoder, steps=steps)
    assert costs.method == "fisher"
    assert [p.path for p in costs.profiles] == list(make_measurement(tied).shapes)
    for profile in costs.profiles:
        assert len(profile.costs_nats) == len(profile.formats)
        assert all(0 <= cost < float("inf") for cost in profile.costs_nats)
        assert profile.cost_nats(UNQUANTIZED) == 0
        quantized = [c for f, c in zip(profile.formats, profile.costs_nats, strict=True) if f.bits]
        assert quantized == sorted(quantized, reverse=True)
    assert steps == 7 * ["measure"] + 3 * ["probe"]
    assert set(costs.importance) == {"model.embed_tokens"}


def test_measuring_twice_gives_the_same_costs(tied):
    first, second = run(tied), run(tied)
    assert first.profiles == second.profiles
    assert first.scales == second.scales


@pytest.mark.parametrize(
    "path",
    [
        "model.layers.0.mlp.up_proj",
        "model.layers.2.self_attn.v_proj",
        "model.layers.1.input_layernorm",
        "model.embed_tokens",
        "model.norm",
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_damaged_weight_is_an_error_that_names_its_layer(tied, path, value):
    def damage(name: str, array: mx.array) -> mx.array:
        fifth = mx.arange(array.size).reshape(array.shape) == 5
        return mx.where(fifth, value, array) if name == f"{path}.weight" else array

    with pytest.raises(NonFiniteError) as raised:
        run(tied.with_weights(damage))
    assert raised.value.layer == path
    assert f"'{path}'" in str(raised.value)


class NoGradient(nn.Module):
    """A norm with an operation that has no gradient."""

    def __init__(self, inner: nn.Module, error: Exception | None = None) -> None:
        super().__init__()
        self._error = error or ValueError("this operation has no gradient")
        self.weight = inner.weight
        self._inner = type(inner).__call__
        self.eps = inner.eps

    def __call__(self, x: mx.array) -> mx.array:
        @mx.custom_function
        def forward_only(y: mx.array) -> mx.array:
            return self._inner(self, y)

        @forward_only.vjp
        def refuse(*_args):
            raise self._error

        result: Any = forward_only(x)
        return cast("mx.array", result)


class PoisonedGradient(NoGradient):
    """A gradient that is NaN, though the forward pass is finite."""

    def __call__(self, x: mx.array) -> mx.array:
        @mx.custom_function
        def forward_only(y: mx.array) -> mx.array:
            return self._inner(self, y)

        @forward_only.vjp
        def poison(primal, _cotangent, _output):
            return mx.full(primal.shape, mx.nan)

        result: Any = forward_only(x)
        return cast("mx.array", result)


def test_a_gradient_that_is_not_finite_leads_to_the_method_without_gradients(tied, caplog):
    model = tied.with_weights(lambda _path, array: array)
    block = model.plain.model.layers[2]
    block.input_layernorm = PoisonedGradient(block.input_layernorm)
    with caplog.at_level(logging.WARNING, logger=measuring.__name__):
        assert run(model).method == "block_output"
    assert "the gradient at layer 'model.layers.1" in caplog.text


def test_an_overflow_between_finite_weights_names_the_layer_that_it_reaches(tied):
    norm = "model.layers.1.input_layernorm.weight"
    huge = tied.with_weights(lambda path, a: mx.full(a.shape, 1e30) if path == norm else a)
    with pytest.raises(NonFiniteError) as raised:
        run(huge)
    assert raised.value.layer.startswith("model.layers.1.self_attn")


def without_gradient(tiny: TinyModel) -> TinyModel:
    for layer in tiny.plain.model.layers:
        layer.input_layernorm = NoGradient(layer.input_layernorm)
    return tiny


def test_a_failing_machine_is_not_taken_for_a_model_without_gradients(tied):
    model = tied.with_weights(lambda _path, array: array)
    block = model.plain.model.layers[2]
    failure = RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory")
    block.input_layernorm = NoGradient(block.input_layernorm, failure)
    with pytest.raises(RuntimeError, match="Insufficient Memory"):
        run(model)


def test_a_model_without_gradients_is_measured_by_its_blocks_outputs(tied, caplog):
    model = without_gradient(tied.with_weights(lambda _path, array: array))
    with caplog.at_level(logging.WARNING, logger=measuring.__name__):
        costs = run(model)
    assert costs.method == "block_output"
    assert len(costs.importance["model.embed_tokens"].terms) == 2  # as the head and as the table
    assert "cannot be differentiated (this operation has no gradient)" in caplog.text
    for profile in costs.profiles:
        quantized = [c for f, c in zip(profile.formats, profile.costs_nats, strict=True) if f.bits]
        assert quantized == sorted(quantized, reverse=True)
        assert 0 < quantized[-1] <= quantized[0] < float("inf")


def test_both_methods_agree_on_sums_over_a_role(tied):
    """The probes put block-output errors into nats, so sums over a role come out alike."""
    by_gradient = run(tied)
    by_output = run(without_gradient(tied.with_weights(lambda _path, array: array)))
    fmt = QuantFormat(4, 32)

    def total(costs: Costs, name: str) -> float:
        return sum(p.cost_nats(fmt) for p in costs.profiles if p.path.endswith(name))

    for name in ("down_proj", "q_proj", "embed_tokens"):
        assert total(by_output, name) == pytest.approx(total(by_gradient, name), rel=0.5)


def test_experts_and_an_untied_head_are_measured_without_gradients_too(experts):
    model = without_gradient(experts.with_weights(lambda _path, array: array))
    costs = run(model)
    assert costs.method == "block_output"
    assert {"model.embed_tokens", "lm_head"} < {profile.path for profile in costs.profiles}
    for profile in costs.profiles:
        assert 0 < profile.costs_nats[-2] < profile.costs_nats[0] < float("inf")


def test_without_gradients_an_odd_width_or_a_weight_of_zeros_counts_like_the_median():
    """The disturbance needs whole groups of 32, and an error to show."""
    tiny = make_model(hidden_size=48, tie_word_embeddings=True)
    zero = "model.layers.0.mlp.down_proj.weight"
    tiny = tiny.with_weights(lambda path, a: mx.zeros_like(a) if path == zero else a)
    found = {p.path: p for p in run(without_gradient(tiny), formats="4g32,unquantized").profiles}
    assert found["model.layers.1.mlp.down_proj"].costs_nats[0] > 0
    assert found["model.layers.0.mlp.down_proj"].costs_nats == (0.0, 0.0)
    assert found["model.layers.0.mlp.up_proj"].formats == (UNQUANTIZED,)


def test_a_damaged_weight_of_a_model_without_gradients_is_an_error_too(tied):
    path = "model.layers.1.mlp.up_proj"
    damaged = tied.with_weights(lambda p, a: a * mx.nan if p == f"{path}.weight" else a)
    with pytest.raises(NonFiniteError) as raised:
        run(without_gradient(damaged))
    assert raised.value.layer == path


def test_experts_that_the_text_never_reached_count_like_the_median(experts):
    """One layer is hidden from the text by a measurement that knows a spare layer."""
    measurement = make_measurement(experts)
    spare = "model.layers.0.spare"
    measurement.blocks.blocks["model.layers.0"].spare = nn.Linear(64, 64, bias=False)
    weights = {**experts.weights, f"{spare}.weight": random_weight(64, 64, dtype=mx.float32)}
    wider = make_measurement(
        experts,
        blocks=measurement.blocks,
        load=lambda: dict(weights),
        shapes={**measurement.shapes, spare: (64, 64)},
    )
    costs = measure_costs(
        wider,
        make_profiles(wider, formats="2g32,4g32"),
        encoder="wls",
        effort=EFFORTS["normal"],
        probe_windows=make_batches(1, seed=5),
        on_step=lambda _step: None,
    )
    by_path = {profile.path: profile.costs_nats for profile in costs.profiles}
    others = [c[0] for path, c in by_path.items() if path != spare]
    assert min(others) < by_path[spare][0] < max(others)
