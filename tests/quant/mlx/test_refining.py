from __future__ import annotations

from itertools import count

import mlx.core as mx
import pytest

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx import refining
from dynquant.quant.mlx.backward import NoGradientError, backward
from dynquant.quant.mlx.encoding import Encoded, decode, encode_min_max
from dynquant.quant.mlx.loading import Weights, scalar
from dynquant.quant.mlx.parameters import quantizable
from dynquant.quant.mlx.refining import Pairs, refined
from tests.quant.mlx.factories import TinyModel, make_batches

FMT = QuantFormat(2, 32)
CALIBRATION, HELD_OUT = make_batches(2, seed=1), make_batches(1, shape=(4, 24), seed=5)


def quantized(tiny: TinyModel) -> tuple[Weights, dict[str, QuantFormat]]:
    """Every layer in two bits from minimum and maximum: much is left to gain."""
    formats = {path: FMT for path in quantizable(tiny.plain) if not path.endswith("gate")}
    stored = dict(tiny.weights)
    for path in formats:
        encoded = encode_min_max(stored.pop(f"{path}.weight"), FMT)
        stored |= {f"{path}.{name}": array for name, array in encoded.arrays.items()}
    return stored, formats


def refine(tiny: TinyModel, stored: Weights, formats, **options) -> Weights:
    return refined(
        tiny.blocks(),
        tiny.load,
        lambda: dict(stored),
        formats,
        batches=CALIBRATION,
        held_out=HELD_OUT,
        **options,
    )


def kl(tiny: TinyModel, stored: Weights, formats) -> float:
    """KL(original ‖ quantized), whole models."""
    plain = dict(tiny.weights)
    for path in formats:
        arrays = {name: stored[f"{path}.{name}"] for name in ("weight", "scales", "biases")}
        plain[f"{path}.weight"] = decode(Encoded(arrays, FMT))
    other = tiny.with_weights(lambda path, _: plain[path]).plain
    p, q = (
        mx.softmax(model(HELD_OUT[0])[:, :-1].astype(mx.float32), axis=-1)
        for model in (tiny.plain, other)
    )
    return scalar((p * (mx.log(p) - mx.log(q))).sum(-1).mean())


@pytest.mark.parametrize("family", ["tied", "experts"])
def test_refined_scales_and_biases_bring_the_model_nearer_to_the_original(family, request):
    tiny = request.getfixturevalue(family)
    stored, formats = quantized(tiny)
    better = refine(tiny, stored, formats, num_steps=8)
    assert set(better) == {f"{path}.{name}" for path in formats for name in ("scales", "biases")}
    for name, array in better.items():
        assert array.shape == stored[name].shape
        assert array.dtype == stored[name].dtype
    assert kl(tiny, stored | better, formats) < kl(tiny, stored, formats)


def test_refining_twice_gives_the_same_bits(tied):
    stored, formats = quantized(tied)
    first, second = (refine(tied, stored, formats, num_steps=4) for _ in "ab")
    assert first
    assert all(mx.array_equal(first[name], second[name]).item() for name in first)


def test_nothing_changes_where_no_step_is_better(tied):
    exact = dict(tied.weights)
    formats = {path: QuantFormat(8, 32) for path in quantizable(tied.plain)}
    for path in formats:
        exact[f"{path}.weight"] = decode(
            encode_min_max(exact[f"{path}.weight"], QuantFormat(8, 32))
        )
    original = tied.with_weights(lambda path, _: exact[path])
    stored = dict(exact)
    for path, fmt in formats.items():
        encoded = encode_min_max(stored.pop(f"{path}.weight"), fmt)
        stored |= {f"{path}.{name}": array for name, array in encoded.arrays.items()}
    assert refine(original, stored, formats, num_steps=4) == {}


def test_no_step_begins_that_there_is_no_time_for(tied):
    stored, formats = quantized(tied)
    asked, steps = count(), list[int]()
    refine(
        tied,
        stored,
        formats,
        num_steps=9,
        keep_going=lambda: next(asked) < 2,
        on_step=lambda: steps.append(1),
    )
    assert len(steps) == 2


@pytest.mark.parametrize("num_made", [1, 3, 5, 6])
def test_what_was_gained_before_time_ran_out_is_kept(tied, num_made):
    """Whether or not the steps end where their gain is looked at anyway."""
    stored, formats = quantized(tied)
    asked = count()
    better = refine(tied, stored, formats, num_steps=32, keep_going=lambda: next(asked) < num_made)
    assert kl(tied, stored | better, formats) < kl(tied, stored, formats)
    whole = refine(tied, stored, formats, num_steps=num_made)
    assert whole.keys() == better.keys()
    assert all(mx.array_equal(whole[name], better[name]).item() for name in whole)


def test_without_a_step_nothing_changes_and_nothing_is_looked_at_again(tied, caplog):
    stored, formats = quantized(tied)
    with caplog.at_level("INFO"):
        assert refine(tied, stored, formats, num_steps=8, keep_going=lambda: False) == {}
    assert "held-out KL" not in caplog.text


def test_what_was_gained_before_a_gradient_could_not_be_taken_is_kept(tied, monkeypatch):
    stored, formats = quantized(tied)
    made = count()

    def no_third(*args, **kwargs):
        if next(made) == 2:
            raise NoGradientError("An operation without a gradient.")
        return backward(*args, **kwargs)

    monkeypatch.setattr(refining, "backward", no_third)
    better = refine(tied, stored, formats, num_steps=8)
    assert next(made) == 3
    assert kl(tied, stored | better, formats) < kl(tied, stored, formats)


def test_only_one_block_is_held_while_scales_and_biases_move(tied):
    stored, formats = quantized(tied)
    blocks = tied.blocks()
    pairs = Pairs(blocks, lambda: dict(stored), formats)
    codes = dict(tied.weights)  # shapes are all that counts here
    for block in blocks.blocks:
        pairs.decode({path: a for path, a in codes.items() if blocks.block_of(path) == block})
        assert {blocks.block_of(path) for path in pairs._codes} == {block}
