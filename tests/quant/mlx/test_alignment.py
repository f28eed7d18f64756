from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.quant.dynamic_quant import estimate_sensitivities

from dynquant.errors import NonFiniteError, UnsupportedModelError
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.alignment import measure_alignment
from tests.quant.mlx.factories import (
    TinyModel,
    make_batches,
    make_measurement,
    make_model,
    make_profiles,
)
from tests.quant.mlx.test_measuring import without_gradient

LOW, HIGH = QuantFormat(4, 32), QuantFormat(5, 32)


def aligned(
    tiny: TinyModel,
    batches: list[mx.array],
    *,
    low: QuantFormat = LOW,
    high: QuantFormat = HIGH,
    steps: list[int] | None = None,
) -> dict[str, float]:
    measurement = make_measurement(tiny, batches)
    seen = [] if steps is None else steps
    return measure_alignment(
        measurement,
        make_profiles(measurement, formats="unquantized"),
        low=low,
        high=high,
        on_step=lambda: seen.append(1),
    )


def seeds_own(tiny: TinyModel, data: mx.array, *, batch_size: int = 4) -> dict[str, float]:
    found = estimate_sensitivities(
        tiny.plain, data, LOW.bits, LOW.group_size, HIGH.bits, HIGH.group_size, batch_size
    )
    return dict(found)


@pytest.mark.parametrize("make", [lambda: make_model(tie_word_embeddings=True), make_model])
def test_sensitivities_equal_those_of_mlx_lm(make, capsys):
    tiny, data = make(), make_batches(1, shape=(8, 24))[0]
    expected = seeds_own(tiny, data)
    found = aligned(tiny, [data[:4], data[4:]])
    assert list(found) == list(expected)
    largest = max(map(abs, expected.values()))
    for path, value in expected.items():
        assert found[path] == pytest.approx(value, rel=2e-3, abs=1e-4 * largest), path


def test_sensitivities_of_experts_equal_those_of_mlx_lm(experts, capsys):
    data = make_batches(1, shape=(4, 24))[0]
    expected, found = seeds_own(experts, data), aligned(experts, [data])
    largest = max(map(abs, expected.values()))
    assert set(found) == set(expected)
    for path, value in expected.items():
        assert found[path] == pytest.approx(value, rel=5e-3, abs=2e-4 * largest), path


def test_sensitivities_of_a_trained_model_equal_those_of_mlx_lm(tiny_qwen3, capsys):
    data = make_batches(1, shape=(4, 32), vocab=8192)[0]
    expected, found = seeds_own(tiny_qwen3, data), aligned(tiny_qwen3, [data])
    pairs = np.array([(value, found[path]) for path, value in expected.items()])
    np.testing.assert_allclose(pairs[:, 1], pairs[:, 0], rtol=0.01, atol=1e-3 * np.abs(pairs).max())


def test_a_layer_that_one_of_the_formats_does_not_fit_is_left_out(tied):
    found = aligned(tied, make_batches(), low=QuantFormat(4, 128), high=HIGH)
    assert set(found) == {f"model.layers.{i}.mlp.down_proj" for i in range(3)}


def test_the_step_may_go_up_to_the_weight_as_it_is(tied):
    found = aligned(tied, make_batches(), high=UNQUANTIZED)
    assert all(np.isfinite(value) for value in found.values())
    assert len(found) == len(make_measurement(tied).shapes)


def test_progress_is_reported_after_each_block_in_both_passes(tied):
    steps: list[int] = []
    aligned(tied, make_batches(), steps=steps)
    assert len(steps) == 3 + 4


def test_a_sensitivity_that_is_not_finite_is_an_error_that_names_a_layer(tied):
    damaged = tied.with_weights(lambda p, a: a * mx.nan if p == "model.norm.weight" else a)
    with pytest.raises(NonFiniteError) as raised:
        aligned(damaged, make_batches())
    assert raised.value.layer in str(raised.value)


def test_a_model_without_gradients_is_unsupported(tied):
    model = without_gradient(tied.with_weights(lambda _path, array: array))
    with pytest.raises(UnsupportedModelError, match="--method fisher"):
        aligned(model, make_batches())
