from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.arrays import Weights, scalar
from dynquant.quant.mlx.backward import NoGradientError
from dynquant.quant.mlx.encoding import Encoded, decode, encode_min_max, unpacked
from dynquant.quant.mlx.parameters import quantizable
from dynquant.quant.mlx.reconstruction import reconstruct
from tests.quant.mlx.factories import TinyModel, make_batches

FMT = QuantFormat(3, 32)
CALIBRATION, HELD_OUT = make_batches(8, seed=1), make_batches(2, seed=5)
ARRAYS = ("weight", "scales", "biases")


def quantized(tiny: TinyModel, fmt: QuantFormat = FMT) -> tuple[Weights, dict[str, QuantFormat]]:
    """The layers of all blocks by `mx.quantize`, which leaves much to gain."""
    formats = {
        path: fmt
        for path in quantizable(tiny.plain)
        if ".layers." in path and not path.endswith("gate")
    }
    stored = dict(tiny.weights)
    for path in formats:
        encoded = encode_min_max(stored.pop(f"{path}.weight"), fmt)
        stored |= {f"{path}.{name}": array for name, array in encoded.arrays.items()}
    return stored, formats


def decoded(stored: Weights, formats: dict[str, QuantFormat]) -> Weights:
    plain = dict(stored)
    for path, fmt in formats.items():
        arrays = {name: plain.pop(f"{path}.{name}") for name in ARRAYS if f"{path}.{name}" in plain}
        plain[f"{path}.weight"] = decode(Encoded(arrays, fmt))
    return plain


def fit(tiny: TinyModel, stored: Weights, formats, **options) -> Weights:
    """`stored` after a reconstruction."""
    written = dict(stored)
    options = {"batches": CALIBRATION, "held_out": HELD_OUT, "num_epochs": 4, **options}
    reconstruct(
        tiny.blocks(),
        tiny.load,
        lambda: decoded(written, formats),
        lambda: dict(written),
        formats,
        write=written.update,
        **options,
    )
    return written


def kl(tiny: TinyModel, stored: Weights, formats) -> float:
    """KL(original ‖ quantized) on held-out windows, whole models."""
    plain = decoded(stored, formats)
    other = tiny.with_weights(lambda path, _: plain[path]).plain
    windows = mx.concatenate(HELD_OUT)
    p, q = (mx.softmax(m(windows).astype(mx.float32), axis=-1) for m in (tiny.plain, other))
    return scalar((p * (mx.log(p) - mx.log(q))).sum(-1).mean())


@pytest.mark.parametrize("family", ["tied", "experts"])
def test_fitted_blocks_bring_the_model_nearer_to_the_original(family, request):
    tiny = request.getfixturevalue(family)
    stored, formats = quantized(tiny)
    better = fit(tiny, stored, formats)
    assert kl(tiny, better, formats) < 0.95 * kl(tiny, stored, formats)


def test_arrays_keep_their_names_shapes_and_dtypes_and_the_rest_stays(tied):
    stored, formats = quantized(tied)
    better = fit(tied, stored, formats)
    assert better.keys() == stored.keys()
    changed = {name for name in stored if not mx.array_equal(stored[name], better[name]).item()}
    assert changed
    assert changed <= {f"{path}.{name}" for path in formats for name in ARRAYS}
    for name in changed:
        assert better[name].shape == stored[name].shape
        assert better[name].dtype == stored[name].dtype


def test_codes_move_not_only_scales(tied):
    stored, formats = quantized(tied)
    better = fit(tied, stored, formats)
    path = next(iter(formats))
    moved = (
        np.array(unpacked(each[f"{path}.weight"], FMT)).astype(int) for each in (stored, better)
    )
    assert np.any(np.subtract(*moved))


def test_fitting_twice_gives_the_same_bits(tied):
    stored, formats = quantized(tied)
    first, second = (fit(tied, stored, formats, num_epochs=1) for _ in "ab")
    assert all(mx.array_equal(first[name], second[name]).item() for name in stored)


def test_a_block_that_is_exact_already_keeps_its_codes(tied):
    stored, formats = quantized(tied, QuantFormat(8, 32))
    plain = decoded(stored, formats)
    original = tied.with_weights(lambda path, _: plain[path])
    better = fit(original, stored, formats, num_epochs=1)
    assert all(mx.array_equal(stored[name], better[name]).item() for name in stored)


def test_a_block_without_a_gradient_keeps_its_codes(tied, monkeypatch, caplog):
    def no_gradient(*_args):
        raise ValueError("[custom_kernel] VJP not implemented")

    monkeypatch.setattr(mx, "grad", lambda _function: no_gradient)
    stored, formats = quantized(tied)
    with caplog.at_level("INFO"):
        better = fit(tied, stored, formats, num_epochs=1)
    assert all(mx.array_equal(stored[name], better[name]).item() for name in stored)
    assert "cannot be fitted" in caplog.text


def test_an_error_that_has_nothing_to_do_with_gradients_is_not_hidden(tied, monkeypatch):
    def full(*_args):
        raise RuntimeError("[malloc] unable to allocate")

    monkeypatch.setattr(mx, "grad", lambda _function: full)
    stored, formats = quantized(tied)
    with pytest.raises(RuntimeError, match="malloc") as raised:
        fit(tied, stored, formats, num_epochs=1)
    assert not isinstance(raised.value, NoGradientError)


def test_formats_without_biases_stay_as_they_are(tied):
    stored, formats = quantized(tied)
    path = next(iter(formats))
    fmt = QuantFormat(4, 32, "mxfp4")
    plain = tied.weights[f"{path}.weight"]
    for name in ARRAYS:
        del stored[f"{path}.{name}"]
    stored |= {f"{path}.{name}": a for name, a in encode_min_max(plain, fmt).arrays.items()}
    better = fit(tied, stored, formats | {path: fmt})
    assert mx.array_equal(stored[f"{path}.weight"], better[f"{path}.weight"]).item()
    assert any(not mx.array_equal(stored[name], better[name]).item() for name in stored)
