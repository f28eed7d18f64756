from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.model.config import (
    as_mlx_lm_reads,
    changed_settings,
    dtype_names,
    rope_values,
    tied_as_stored,
    with_dtype,
)
from tests.json_values import json_values

HEAD = "lm_head.weight"
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0}


def test_what_transformers_5_says_of_rotary_embeddings_stands_in_the_older_places_too():
    read = as_mlx_lm_reads({"model_type": "llama", "rope_parameters": LLAMA3})
    assert read["rope_theta"] == 5e5
    assert read["rope_scaling"] == {
        "rope_type": "llama3",
        "type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
    }
    assert read["rope_parameters"] == LLAMA3


def test_plain_rotary_embeddings_have_no_scaling_and_say_so():
    read = as_mlx_lm_reads({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}})
    assert (read["rope_theta"], read["rope_scaling"]) == (1e6, None)


def test_the_newer_spelling_counts_where_both_are_there():
    read = as_mlx_lm_reads({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}})
    assert read["rope_theta"] == 1e6


def test_a_kind_for_each_type_of_layer_becomes_a_global_and_a_local_base():
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    read = as_mlx_lm_reads({"rope_parameters": ropes})
    assert (read["rope_theta"], read["rope_local_base_freq"]) == (1e6, 1e4)
    assert read["rope_scaling"]["factor"] == 8.0


def test_a_share_of_one_type_of_layer_is_not_spread_to_all():
    ropes = {
        "full_attention": {"partial_rotary_factor": 0.5, "rope_theta": 1e6},
        "sliding_attention": {"rope_theta": 1e4},
    }
    assert "partial_rotary_factor" not in as_mlx_lm_reads({"rope_parameters": ropes})
    ropes["sliding_attention"]["partial_rotary_factor"] = 0.5
    assert as_mlx_lm_reads({"rope_parameters": ropes})["partial_rotary_factor"] == 0.5


def test_the_config_of_a_nested_language_model_is_read_the_same_way():
    read = as_mlx_lm_reads({"text_config": {"rope_parameters": {"rope_theta": 5e5}}})
    assert read["text_config"]["rope_theta"] == 5e5
    assert "rope_theta" not in read


def test_tagged_numbers_are_numbers_wherever_they_stand():
    tagged = {"limits": [0.0, {"__float__": "Infinity"}], "a": {"b": {"__float__": "NaN"}}}
    read = as_mlx_lm_reads(tagged)
    assert read["limits"] == [0.0, math.inf]
    assert math.isnan(read["a"]["b"])
    assert as_mlx_lm_reads({"x": {"__float__": "else"}}) == {"x": {"__float__": "else"}}


def test_a_null_in_the_place_of_a_group_of_settings_is_none():
    config = {"quantization_config": None, "text_config": None, "sliding_window": None}
    assert as_mlx_lm_reads(config) == {"sliding_window": None}


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_any_config_is_read_and_reading_it_again_changes_nothing(config):
    read = as_mlx_lm_reads(config)
    assert json.dumps(as_mlx_lm_reads(read)) == json.dumps(read)


def test_only_what_mlx_lm_would_read_otherwise_is_a_changed_setting():
    config = {"rope_theta": 1e4, "quantization_config": {"bits": 4}, "vocab_size": 8, "x": None}
    read = {"rope_theta": 1e6, "vocab_size": 8}
    assert changed_settings(config, read) == {"rope_theta": 1e6, "quantization_config": None}
    assert changed_settings({"x": {"__float__": "Infinity"}}, {"x": math.inf}) == {}


def test_every_base_and_factor_of_rotary_embeddings_is_found_where_it_stands():
    config = {
        "rope_theta": 1e4,
        "text_config": {
            "layer_types": ["full_attention"],
            "rope_parameters": {
                "full_attention": LLAMA3,
                "sliding_attention": {"rope_theta": 7.0},
            },
        },
    }
    at = "text_config.rope_parameters.full_attention"
    assert {str(value): value.value for value in rope_values(config)} == {
        "rope_theta": 1e4,
        f"{at}.rope_theta": 5e5,
        f"{at}.factor": 8.0,
    }


@pytest.mark.parametrize("kind", ["default", "mrope", "dynamic"])
def test_a_factor_that_changes_nothing_for_a_short_text_need_not_be_read(kind):
    assert rope_values({"rope_scaling": {"type": kind, "factor": 4.0}}) == []
    assert rope_values({"rope_scaling": {"type": "linear", "factor": 1.0}}) == []
    assert len(rope_values({"rope_scaling": {"type": "linear", "factor": 4.0}})) == 1


def test_a_changed_value_leaves_the_rest_of_the_config_as_it_is():
    config = {"a": 1, "rope_parameters": {"rope_theta": 3.0, "rope_type": "default"}}
    (value,) = rope_values(config)
    changed = value.changed(config)
    assert changed["rope_parameters"]["rope_theta"] != 3.0
    assert changed["rope_parameters"] | {"rope_theta": 3.0} == config["rope_parameters"]
    assert changed["a"] == 1


def test_both_names_of_the_dtype_are_found_and_set_at_every_level():
    config = {"torch_dtype": "torch.float16", "text_config": {"dtype": "bfloat16"}}
    assert dtype_names(config) == ["float16", "bfloat16"]
    assert with_dtype(config, "float32") == {
        "torch_dtype": "float32",
        "text_config": {"dtype": "float32"},
    }
    assert with_dtype({"a": 1}, "float32") == {"a": 1}


def test_the_stored_tensors_say_what_a_silent_config_does_not():
    assert tied_as_stored({"model_type": "llama"}, [HEAD]) == {
        "model_type": "llama",
        "tie_word_embeddings": False,
    }
    nested = tied_as_stored({"text_config": {"a": 1}}, [f"language_model.{HEAD}"])
    assert nested is not None
    assert nested["text_config"]["tie_word_embeddings"] is False
    assert tied_as_stored({}, ["model.embed_tokens.weight"]) == {"tie_word_embeddings": True}
    assert tied_as_stored({"text_config": {"tie_word_embeddings": True}}, [HEAD]) is None
