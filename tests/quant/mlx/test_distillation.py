from __future__ import annotations

from itertools import count

import mlx.core as mx
import pytest

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx import distillation
from dynquant.quant.mlx.arrays import Weights, scalar
from dynquant.quant.mlx.backward import NoGradientError, backward
from dynquant.quant.mlx.distillation import Student, distilled
from dynquant.quant.mlx.encoding import Encoded, decode, encode_min_max
from dynquant.quant.mlx.parameters import quantizable
from tests.quant.mlx.factories import TinyModel, make_batches

FMT = QuantFormat(2, 32)
CALIBRATION, HELD_OUT = make_batches(2, seed=1), make_batches(1, shape=(4, 24), seed=5)


def quantized(tiny: TinyModel) -> tuple[Weights, dict[str, QuantFormat]]:
    """Every layer in two bits by `mx.quantize`, which leaves much to gain."""
    formats = {path: FMT for path in quantizable(tiny.plain) if not path.endswith("gate")}
    stored = dict(tiny.weights)
    for path in formats:
        encoded = encode_min_max(stored.pop(f"{path}.weight"), FMT)
        stored |= {f"{path}.{name}": array for name, array in encoded.arrays.items()}
    return stored, formats


def distil(tiny: TinyModel, stored: Weights, formats, **options) -> Weights:
    return distilled(
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
def test_distilled_scales_biases_and_norms_bring_the_model_nearer_to_the_original(family, request):
    tiny = request.getfixturevalue(family)
    stored, formats = quantized(tiny)
    better = distil(tiny, stored, formats, num_steps=8)
    pairs = {f"{path}.{name}" for path in formats for name in ("scales", "biases")}
    assert set(better) == pairs | {name for name, array in tiny.weights.items() if array.ndim == 1}
    for name, array in better.items():
        assert array.shape == stored[name].shape
        assert array.dtype == stored[name].dtype
    assert kl(tiny, stored | better, formats) < kl(tiny, stored, formats)


def test_distilling_twice_gives_the_same_bits(tied):
    stored, formats = quantized(tied)
    first, second = (distil(tied, stored, formats, num_steps=4) for _ in "ab")
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
    assert distil(original, stored, formats, num_steps=4) == {}


def test_no_step_begins_after_the_time_is_spent(tied):
    stored, formats = quantized(tied)
    asked, steps = count(), list[int]()
    distil(
        tied,
        stored,
        formats,
        num_steps=9,
        keep_going=lambda: next(asked) < 2,
        on_step=lambda: steps.append(1),
    )
    assert len(steps) == 2


@pytest.mark.parametrize("num_made", [1, 3, 5, 6])
def test_gains_before_the_time_was_spent_are_kept(tied, num_made):
    """Whether or not the held-out KL is due after the last step."""
    stored, formats = quantized(tied)
    asked = count()
    better = distil(tied, stored, formats, num_steps=32, keep_going=lambda: next(asked) < num_made)
    assert kl(tied, stored | better, formats) < kl(tied, stored, formats)


def test_without_a_step_nothing_changes_and_kl_is_measured_once(tied, caplog):
    stored, formats = quantized(tied)
    with caplog.at_level("INFO"):
        assert distil(tied, stored, formats, num_steps=8, keep_going=lambda: False) == {}
    assert "held-out KL" not in caplog.text


def test_gains_before_a_missing_gradient_are_kept(tied, monkeypatch):
    stored, formats = quantized(tied)
    made = count()

    def no_third(*args, **kwargs):
        if next(made) == 2:
            raise NoGradientError("An operation without a gradient.")
        return backward(*args, **kwargs)

    monkeypatch.setattr(distillation, "backward", no_third)
    better = distil(tied, stored, formats, num_steps=8)
    assert next(made) == 3
    assert kl(tied, stored | better, formats) < kl(tied, stored, formats)


def test_only_one_block_is_held_while_scales_and_biases_move(tied):
    stored, formats = quantized(tied)
    blocks = tied.blocks()
    student = Student(blocks, lambda: dict(stored), formats, num_steps=1)
    codes = dict(tied.weights)  # only their shapes are used
    for block in blocks.blocks:
        student.decode({path: a for path, a in codes.items() if blocks.block_of(path) == block})
        assert {blocks.block_of(path) for path in student._codes} == {block}
