from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dynquant.errors import InvalidOptionError, NonFiniteError
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx import gptq
from dynquant.quant.mlx.encoders import ENCODERS, LayerEncoder, check_encoder
from dynquant.quant.mlx.encoding import Encoded, decode, encode, encode_min_max
from dynquant.quant.mlx.gptq import encode_with_feedback
from dynquant.quant.mlx.hessians import HessianObserver, takes_feedback
from dynquant.quant.mlx.importance import Importance, Term
from dynquant.quant.mlx.inverse_hessian import InverseHessian
from dynquant.quant.mlx.loading import scalar
from dynquant.quant.mlx.observing import Observation, Role

FMT = QuantFormat(3, 32)


def random(*shape: int, seed: int = 0) -> mx.array:
    values = np.random.default_rng(seed).normal(size=shape) * np.arange(1, shape[-1] + 1)
    return mx.array(values.astype(np.float32))


def make_encoder(name: str, x: mx.array | None = None, **importance: Importance) -> LayerEncoder:
    """An encoder that saw `x` go into the layer `a`."""
    watcher = HessianObserver({"a": (8, 64)}, covariance=name == "gptq")
    if x is not None:
        watcher(Observation("a", Role.LINEAR, x, x))
    return LayerEncoder(name, watcher, importance)


def same(a: Encoded, b: Encoded) -> bool:
    return a.fmt == b.fmt and all(
        mx.array_equal(a.arrays[key], b.arrays[key]).item() for key in {*a.arrays, *b.arrays}
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_known_by_its_name(name):
    assert check_encoder(name) == name
    weight = random(8, 64)
    decoded = decode(make_encoder(name, random(50, 64, seed=1)).encode("a", weight, FMT))
    assert scalar(mx.abs(decoded - weight).mean()) < 0.6 * scalar(mx.abs(weight).mean())


def test_an_unknown_encoder_is_refused_with_the_known_ones():
    with pytest.raises(InvalidOptionError, match=r"'awq'\. Choose one of gptq, wls, minmax"):
        check_encoder("awq")


def test_gptq_takes_the_covariance_of_the_inputs():
    weight, x = random(8, 64), random(50, 64, seed=1)
    found = make_encoder("gptq", x).encode("a", weight, FMT)
    assert same(found, encode_with_feedback(weight, InverseHessian.of(x.T @ x, 32), FMT))


def test_layers_that_share_an_input_are_factored_once():
    x, paths = random(50, 64, seed=1), ("a", "b", "c")
    watcher = HessianObserver(dict.fromkeys(paths, (8, 64)), covariance=True)
    for path in (*paths, *paths):
        watcher(Observation(path, Role.LINEAR, x, x))
        if path == "c":  # as after each batch
            watcher.pending()
    encoder = LayerEncoder("gptq", watcher)
    for seed, path in enumerate(paths):
        encoder.encode(path, random(8, 64, seed=seed), FMT)
    assert len(encoder._factored) == 1
    encoder.encode("a", random(8, 64), QuantFormat(4, 64))
    assert len(encoder._factored) == 2
    encoder.leave(paths)
    assert not encoder._factored


def test_a_layer_is_encoded_once_per_format_until_it_is_left():
    weight, encoder = random(8, 64), make_encoder("gptq", random(50, 64, seed=1))
    first = encoder.encode("a", weight, FMT)
    assert encoder.encode("a", weight, FMT) is first
    assert encoder.encode("a", weight, QuantFormat(4, 32)) is not first
    encoder.leave(["a"])
    assert encoder.encode("a", weight, FMT) is not first


INPUT = random(50, 64, seed=1)


def shared_input(*paths: str) -> tuple[LayerEncoder, dict[str, mx.array]]:
    """An encoder whose layers all saw `INPUT`, and their weights."""
    x = INPUT
    watcher = HessianObserver(dict.fromkeys(paths, (8, 64)), covariance=True)
    for path in paths:
        watcher(Observation(path, Role.LINEAR, x, x))
    weights = {f"{path}.weight": random(8, 64, seed=n) for n, path in enumerate(paths)}
    return LayerEncoder("gptq", watcher), weights


@pytest.mark.parametrize("limit", [1, 1 << 22], ids=["row by row", "all at once"])
def test_what_was_encoded_ahead_is_found_and_as_good(monkeypatch, limit):
    monkeypatch.setitem(gptq._TOGETHER_WEIGHTS, mx.default_device().type, limit)
    formats = [QuantFormat(2, 32), QuantFormat(4, 32), QuantFormat(4, 64), UNQUANTIZED]
    ahead, weights = shared_input("a", "b")
    ahead.encode_ahead(weights, dict.fromkeys(("a", "b", "elsewhere"), formats))
    assert len(ahead._encoded) == 2 * 3
    assert not takes_feedback(ahead.moments, "a")  # nothing needs the covariance any more
    assert not ahead._factored
    later, _ = shared_input("a", "b")
    for path in "ab":
        for fmt in formats:
            weight = weights[f"{path}.weight"]
            errors = [decode(e.encode(path, weight, fmt)) - weight for e in (ahead, later)]
            losses = [scalar(mx.square(INPUT @ error.T).sum()) for error in errors]
            assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_layer_is_let_go_once_it_is_encoded_in_all_its_formats():
    ahead, weights = shared_input("a", "b")
    kept, encoded = dict(weights), dict[str, mx.array]()
    formats = {"a": [FMT, QuantFormat(3, 64)], "b": [FMT, UNQUANTIZED], "elsewhere": [FMT]}
    ahead.encode_ahead(weights, formats, encoded.__setitem__)
    assert list(weights) == ["b.weight"]  # it is written as it is too
    assert list(encoded) == ["a"]
    assert encoded["a"] is kept["a.weight"]


def test_ahead_too_a_damaged_weight_is_refused_by_name():
    ahead, weights = shared_input("a", "b")
    weights["b.weight"] = weights["b.weight"] * mx.nan
    with pytest.raises(NonFiniteError, match="layer 'b'"):
        ahead.encode_ahead(weights, {"a": [FMT], "b": [FMT]})


def test_least_squares_take_the_second_moments_of_the_inputs():
    weight, x = random(8, 64), random(50, 64, seed=1)
    found = make_encoder("wls", x).encode("a", weight, FMT)
    assert same(found, encode(weight, lambda _: mx.square(x).sum(0)[None], FMT))


def test_gptq_falls_back_to_least_squares_where_it_knows_no_inputs():
    weight = random(8, 64)
    found = make_encoder("gptq").encode("a", weight, FMT)
    assert same(found, encode(weight, lambda _: mx.ones((1, 1)), FMT))


def test_importance_that_was_measured_goes_before_what_the_inputs_tell():
    weight, measured = random(8, 64), Importance((Term(mx.ones(8), mx.arange(64) + 1.0),))
    found = make_encoder("wls", random(50, 64, seed=1), a=measured).encode("a", weight, FMT)
    assert same(found, encode(weight, measured.of_rows, FMT))


@pytest.mark.parametrize("name", ENCODERS)
def test_float_formats_and_unquantized_weights_are_stored_as_mlx_does(name):
    weight, encoder = random(8, 64), make_encoder(name, random(50, 64, seed=1))
    mxfp4 = QuantFormat(4, 32, "mxfp4")
    assert same(encoder.encode("a", weight, mxfp4), encode_min_max(weight, mxfp4))
    assert encoder.encode("a", weight, UNQUANTIZED).arrays["weight"] is weight


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("fmt", [FMT, UNQUANTIZED])
def test_a_damaged_weight_is_refused_by_the_name_of_its_layer(name, fmt):
    with pytest.raises(NonFiniteError, match="layer 'a'") as raised:
        make_encoder(name).encode("a", random(8, 64) * mx.nan, fmt)
    assert raised.value.layer == "a"
