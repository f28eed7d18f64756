from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.model.quantized_sources import Tensor, quantized_form
from tests.json_values import json_values

BF16 = Tensor("BF16", (64, 64))
PLAIN = {"model.layers.0.mlp.up_proj.weight": BF16, "model.norm.weight": Tensor("BF16", (64,))}
UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"quantization_config": None},
        {"quantization_config": {}},
        {"quantization": None, "text_config": {"quantization_config": None}},
        {"text_config": None},
    ],
)
def test_plain_floats_are_no_quantization(config):
    assert quantized_form(config, PLAIN) is None


@pytest.mark.parametrize(
    ("config", "form"),
    [
        ({"quantization": {"bits": 4, "group_size": 64}}, "MLX"),
        ({"quantization_config": {"bits": 4, "group_size": 64}}, "MLX"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 32}}, "GPTQ"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "fp8"}}, "float8"),
        ({"text_config": {"quantization_config": {"quant_method": "AWQ"}}}, "AWQ"),
        ({"quantization_config": {"quant_method": "brand-new"}}, "'brand-new'"),
        ({"quantization_config": {"load_in_4bit": True}}, "an unnamed form"),
        ({"quantization_config": "yes"}, "an unnamed form"),
    ],
)
def test_the_form_that_a_config_names_is_called_by_its_name(config, form):
    assert quantized_form(config, PLAIN) == form


@pytest.mark.parametrize(
    ("tensors", "form"),
    [
        ({f"{UP}.weight": Tensor("F8_E4M3", (64, 64))}, "float8 (F8_E4M3)"),
        ({f"{UP}.weight": Tensor("F8_E5M2", (64, 64))}, "float8 (F8_E5M2)"),
        ({f"{UP}.weight": Tensor("I8", (64, 64))}, "int8 (I8)"),
        ({"experts.gate_up_proj": Tensor("F8_E4M3", (8, 64, 64))}, "float8 (F8_E4M3)"),
        (
            {f"{UP}.qweight": Tensor("I32", (8, 64)), f"{UP}.scales": Tensor("F16", (2, 64))},
            "GPTQ",
        ),
        (
            {f"{UP}.qweight": Tensor("I32", (64, 8)), f"{UP}.scales": Tensor("F16", (2, 64))},
            "AWQ",
        ),
        ({f"{UP}.g_idx": Tensor("I32", (64,))}, "GPTQ"),
        ({f"{UP}.weight_packed": Tensor("I32", (64, 8))}, "compressed-tensors"),
        (
            {f"{UP}.weight": Tensor("U8", (2048, 1)), f"{UP}.weight.absmax": Tensor("U8", (64,))},
            "bitsandbytes NF4 or FP4",
        ),
        ({f"{UP}.SCB": Tensor("F32", (64,))}, "bitsandbytes int8"),
        ({"experts.gate_up_proj_blocks": Tensor("U8", (8, 64, 2, 16))}, "MXFP4"),
        (
            {f"{UP}.weight": Tensor("U32", (64, 8)), f"{UP}.scales": Tensor("F16", (64, 1))},
            "MLX",
        ),
        ({f"{UP}.trellis": Tensor("I16", (4, 4, 16))}, "EXL3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_weights_tell_their_form_under_a_silent_config(tensors, form):
    assert quantized_form({}, PLAIN | tensors) == form


@pytest.mark.parametrize(
    "tensors",
    [
        {"model.embeddings.position_ids": Tensor("I64", (1, 512))},
        {"h.0.attn.bias": Tensor("U8", (1, 1, 64, 64))},
        {"model.norm.weight": Tensor("F32", (64,))},
        {"router.expert_bias": Tensor("F64", (8,))},
    ],
)
def test_indices_and_masks_are_no_quantized_weights(tensors):
    assert quantized_form({}, PLAIN | tensors) is None


@given(st.dictionaries(st.sampled_from(["quantization", "quantization_config"]), json_values))
def test_any_config_has_a_form_or_none(config):
    form = quantized_form(config, PLAIN)
    assert form is None or form
    assert (form is None) == (not any(config.values()))
