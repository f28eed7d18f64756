from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dynquant.errors import NonFiniteError
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx import gptq
from dynquant.quant.mlx.arrays import scalar
from dynquant.quant.mlx.encoders import LayerEncoder
from dynquant.quant.mlx.encoding import Encoded, decode, encode, encode_min_max
from dynquant.quant.mlx.gptq import encode_gptq
from dynquant.quant.mlx.hessians import HessianObserver, takes_gptq
from dynquant.quant.mlx.importance import Importance, Term
from dynquant.quant.mlx.inverse_hessian import InverseHessian
from dynquant.quant.mlx.observing import Observation, Role
from dynquant.quant.recipe import ENCODERS

FMT = QuantFormat(3, 32)


def random(*shape: int, seed: int = 0) -> mx.array:
    values = np.random.default_rng(seed).normal(size=shape) * np.arange(1, shape[-1] + 1)
    return mx.array(values.astype(np.float32))


def make_encoder(name: str, x: mx.array | None = None, **importance: Importance) -> LayerEncoder:
    """An encoder with `x` as the inputs of the layer `a`."""
    hessians = HessianObserver({"a": (8, 64)}, gram=name == "gptq")
    if x is not None:
        hessians(Observation("a", Role.LINEAR, x, x))
    return LayerEncoder(name, hessians, importance)


def same(a: Encoded, b: Encoded) -> bool:
    return a.fmt == b.fmt and all(
        mx.array_equal(a.arrays[key], b.arrays[key]).item() for key in {*a.arrays, *b.arrays}
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_known_by_its_name(name):
    weight = random(8, 64)
    decoded = decode(make_encoder(name, random(50, 64, seed=1)).encode("a", weight, FMT))
    assert scalar(mx.abs(decoded - weight).mean()) < 0.6 * scalar(mx.abs(weight).mean())


def test_gptq_takes_the_hessian_of_the_inputs():
    weight, x = random(8, 64), random(50, 64, seed=1)
    found = make_encoder("gptq", x).encode("a", weight, FMT)
    assert same(found, encode_gptq(weight, InverseHessian.of(x.T @ x, 32), FMT))


def test_layers_that_share_an_input_are_factored_once():
    x, paths = random(50, 64, seed=1), ("a", "b", "c")
    hessians = HessianObserver(dict.fromkeys(paths, (8, 64)), gram=True)
    for path in (*paths, *paths):
        hessians(Observation(path, Role.LINEAR, x, x))
        if path == "c":  # as after each batch
            hessians.pending()
    encoder = LayerEncoder("gptq", hessians)
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
    """An encoder whose layers all had `INPUT`, and their weights."""
    x = INPUT
    hessians = HessianObserver(dict.fromkeys(paths, (8, 64)), gram=True)
    for path in paths:
        hessians(Observation(path, Role.LINEAR, x, x))
    weights = {f"{path}.weight": random(8, 64, seed=n) for n, path in enumerate(paths)}
    return LayerEncoder("gptq", hessians), weights


@pytest.mark.parametrize("limit", [1, 1 << 22], ids=["row by row", "all at once"])
def test_layers_encoded_ahead_are_found_and_as_good(monkeypatch, limit):
    monkeypatch.setitem(gptq._TOGETHER_WEIGHTS, mx.default_device().type, limit)
    formats = [QuantFormat(2, 32), QuantFormat(4, 32), QuantFormat(4, 64), UNQUANTIZED]
    ahead, weights = shared_input("a", "b")
    ahead.encode_ahead(weights, dict.fromkeys(("a", "b", "elsewhere"), formats))
    assert len(ahead._encoded) == 2 * 3
    assert not takes_gptq(ahead.hessians, "a")  # its Gram matrix is freed
    assert not ahead._factored
    later, _ = shared_input("a", "b")
    for path in "ab":
        for fmt in formats:
            weight = weights[f"{path}.weight"]
            errors = [decode(e.encode(path, weight, fmt)) - weight for e in (ahead, later)]
            losses = [scalar(mx.square(INPUT @ error.T).sum()) for error in errors]
            assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_weight_is_freed_once_it_is_encoded_in_all_its_formats():
    ahead, weights = shared_input("a", "b")
    kept, encoded = dict(weights), dict[str, mx.array]()
    formats = {"a": [FMT, QuantFormat(3, 64)], "b": [FMT, UNQUANTIZED], "elsewhere": [FMT]}
    ahead.encode_ahead(weights, formats, encoded.__setitem__)
    assert list(weights) == ["b.weight"]  # its unquantized form is still needed
    assert list(encoded) == ["a"]
    assert encoded["a"] is kept["a.weight"]


def on_the_grid() -> mx.array:
    """Weights as training for groups of 32 with 4 bits leaves them."""
    return decode(encode_min_max(random(8, 64).astype(mx.bfloat16), QuantFormat(4, 32))).astype(
        mx.bfloat16
    )


@pytest.mark.parametrize("name", ["gptq", "wls"])
def test_weights_on_the_grid_of_a_format_come_out_bit_for_bit(name):
    weight, fmt = on_the_grid(), QuantFormat(4, 32)
    encoder = make_encoder(name, random(50, 64, seed=1))
    encoder.num_sweeps = 2
    found = decode(encoder.encode("a", weight, fmt)).astype(mx.bfloat16)
    assert mx.array_equal(found, weight).item()
    assert not mx.array_equal(decode(encoder.encode("a", weight, QuantFormat(4, 64))), weight)


@pytest.mark.parametrize("formats", [{QuantFormat(4, 32)}, {QuantFormat(4, 32), FMT}])
def test_ahead_too_weights_on_a_grid_are_kept_and_freed(formats):
    encoder, freed = make_encoder("gptq", random(50, 64, seed=1)), []
    weights = {"a.weight": on_the_grid()}
    encoder.encode_ahead(weights, {"a": formats}, lambda path, _weight: freed.append(path))
    assert (freed, weights) == (["a"], {})
    found = decode(encoder.encode("a", mx.zeros((8, 64)), QuantFormat(4, 32)))
    assert mx.array_equal(found.astype(mx.bfloat16), on_the_grid()).item()


def test_ahead_too_a_damaged_weight_is_refused_by_name():
    ahead, weights = shared_input("a", "b")
    weights["b.weight"] = weights["b.weight"] * mx.nan
    with pytest.raises(NonFiniteError, match="layer 'b'"):
        ahead.encode_ahead(weights, {"a": [FMT], "b": [FMT]})


def test_least_squares_take_the_second_moments_of_the_inputs():
    weight, x = random(8, 64), random(50, 64, seed=1)
    found = make_encoder("wls", x).encode("a", weight, FMT)
    assert same(found, encode(weight, lambda _: mx.square(x).sum(0)[None], FMT))


def test_gptq_falls_back_to_least_squares_without_inputs():
    weight = random(8, 64)
    found = make_encoder("gptq").encode("a", weight, FMT)
    assert same(found, encode(weight, lambda _: mx.ones((1, 1)), FMT))


def test_measured_importance_is_used_before_second_moments():
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
