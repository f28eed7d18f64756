from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dynquant.quant.mlx.model_inputs import ModelInputs, last_positions, run_model, tokens_of


def test_what_a_processor_made_becomes_the_arguments_of_a_model():
    prepared = {
        "input_ids": mx.array([[5, 6]]),
        "attention_mask": mx.ones((1, 2)),
        "pixel_values": mx.zeros((1, 3, 4, 4)),
        "image_sizes": None,
        "token_type": "image",
    }
    inputs = ModelInputs.of_processor(prepared)
    assert inputs.tokens.dtype == mx.int32
    assert set(inputs.others) == {"mask", "pixel_values"}


def test_inputs_come_back_from_a_file_as_they_were(tmp_path):
    images = [mx.ones((3, 2, 2), mx.bfloat16), mx.zeros((3, 4, 4), mx.bfloat16)]
    inputs = ModelInputs(mx.array([[1, 2]], mx.int32), {"pixel_values": images, "n": mx.array([2])})
    np.savez(tmp_path / "a.npz", **inputs.to_arrays())  # type: ignore[arg-type]
    with np.load(tmp_path / "a.npz") as arrays:
        back = ModelInputs.from_arrays(dict(arrays))
    assert back.tokens.tolist() == [[1, 2]]
    assert [each.shape for each in back.others["pixel_values"]] == [(3, 2, 2), (3, 4, 4)]
    assert back.others["n"].tolist() == [2]


def test_inputs_without_tokens_are_refused():
    with pytest.raises(KeyError, match="tokens"):
        ModelInputs.from_arrays({"pixel_values": np.zeros(3)})


def test_a_model_is_called_with_tokens_alone_or_with_all_arguments():
    def model(tokens, **others):
        return tokens.size, sorted(others)

    assert run_model(model, mx.array([[1, 2, 3]])) == (3, [])
    assert run_model(model, ModelInputs.of([1, 2])) == (2, [])
    assert run_model(model, ModelInputs(mx.array([[1]]), {"mask": mx.ones(1)})) == (1, ["mask"])
    assert tokens_of(ModelInputs.of([1, 2])).tolist() == [[1, 2]]


def test_of_an_image_only_the_last_logits_are_compared():
    logits = mx.arange(100).reshape(50, 2)
    image = ModelInputs(mx.array([[1]]), {"pixel_values": mx.ones(1)})
    assert last_positions(ModelInputs.of([1]), logits).shape == (50, 2)
    assert last_positions(image, logits).tolist() == logits[-16:].tolist()
