from __future__ import annotations

import mlx.core as mx
import pytest

from dynquant.errors import UnsupportedModelError
from dynquant.quant.mlx.dropped_tensors import dropped, require_held


def weights(count: int) -> dict[str, mx.array]:
    return {f"w{index}": mx.full((4, 4), index) for index in range(count)}


def test_a_renamed_tensor_is_not_dropped():
    read = weights(3)
    assert dropped(read, {"other.name": read["w0"], "w1": read["w1"]}) == ["w2"]


def test_a_tensor_that_became_a_part_of_another_is_not_dropped():
    read = weights(5)
    kept = {
        "stacked": mx.stack([read["w0"], read["w1"] + 1]),
        "turned": read["w2"].reshape(2, 8).swapaxes(0, 1),
        "w3": read["w3"],
    }
    assert dropped(read, kept) == ["w4"]


def test_a_tensor_under_another_object_is_not_dropped():
    read = weights(2)
    kept = {"same": read["w0"].reshape(4, 4), "made": mx.stack([read["w1"], read["w1"]])}
    assert kept["same"] is not read["w0"]
    assert dropped(read, kept) == []


def test_more_tensors_than_a_call_names_are_looked_for_in_turn():
    read = weights(2500)
    kept = {"stacked": mx.stack([read[f"w{index}"] for index in range(2400)])}
    assert dropped(read, kept) == [f"w{index}" for index in range(2400, 2500)]


def test_nothing_is_computed_to_find_out():
    read = {"a": mx.zeros((4, 4)), "b": mx.broadcast_to(mx.array(0.0), (1 << 20, 1 << 20))}
    assert dropped(read, {"sum": read["b"] + 1}) == ["a"]


def test_a_tensor_that_another_holds_as_well_may_go():
    read = weights(2)
    require_held(["w1"], read, {"model.embed_tokens.weight": mx.full((4, 4), 1)})


def test_a_tensor_with_values_of_its_own_is_named():
    read = {"lm_head.weight": mx.ones((4, 4)), "other.weight": mx.ones((4, 4))}
    held = {"model.embed_tokens.weight": mx.zeros((4, 4)), "b": mx.ones((4,))}
    with pytest.raises(UnsupportedModelError, match=r"'lm_head\.weight'.*tie_word_embeddings"):
        require_held(["lm_head.weight"], read, held)
    with pytest.raises(UnsupportedModelError, match=r"'other\.weight'.*another model"):
        require_held(["other.weight"], read, held)
