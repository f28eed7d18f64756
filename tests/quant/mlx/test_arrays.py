from __future__ import annotations

import mlx.core as mx
import pytest

from dynquant.errors import NonFiniteError
from dynquant.quant.mlx import arrays
from dynquant.quant.mlx.arrays import check_finite, compute_dtype, for_compute


def test_on_a_cpu_everything_is_computed_in_float32():
    with mx.stream(mx.cpu):
        assert compute_dtype(mx.float16) == mx.float32
    weights = {"a": mx.ones(2, mx.float16), "ids": mx.ones(2, mx.int32)}
    computed = for_compute(weights)
    assert computed["a"].dtype == mx.float32
    assert computed["ids"].dtype == mx.int32


def test_weights_are_finite_or_refused():
    check_finite({"a.weight": mx.ones(3), "ids": mx.ones(3, mx.int32)})
    for value in (mx.nan, mx.inf, -mx.inf):
        with pytest.raises(NonFiniteError, match=r"layer 'layers\.0\.a'") as raised:
            check_finite({"b": mx.ones(3), "layers.0.a.weight": mx.array([1.0, value])})
        assert raised.value.layer == "layers.0.a"


def test_damage_at_the_end_of_a_large_weight_is_found_too(monkeypatch):
    monkeypatch.setattr(arrays, "_ADDED_UP", 5)
    check_finite({"a.weight": mx.ones((4, 3)), "b": mx.array(1.0)})
    with pytest.raises(NonFiniteError, match="layer 'a'"):
        check_finite({"a.weight": mx.ones((4, 3)).at[3, 2].add(mx.nan)})
