from __future__ import annotations

import pytest

from dynquant.errors import QuantizedSourceError, Reason
from dynquant.model.originals import quantized_from_card, quantized_from_tags, require_original


@pytest.mark.parametrize(
    ("name", "form", "bases"),
    [
        ("deepseek-ai/DeepSeek-V3", "float8", ()),
        ("openai/gpt-oss-20b", "MXFP4", ()),
        ("moonshotai/Kimi-K2-Thinking", "compressed-tensors", ()),
        ("Qwen/Qwen3-8B-FP8", "float8", ("Qwen/Qwen3-8B",)),
        ("lab/Model-NVFP4", "NVIDIA ModelOpt", ("Lab/Model",)),
        ("zai-org/GLM-4.5-FP8", "compressed-tensors", ()),
        ("somebody/finetune", "int8 (I8)", ()),
        ("somebody/Model-4bit", None, ()),
        ("a-folder-fp8", "float8", ()),
    ],
)
def test_what_a_publisher_ships_in_low_precision_is_an_original(name, form, bases):
    require_original(name, form=form, quantized_from=bases)


@pytest.mark.parametrize(
    ("name", "form", "bases", "words"),
    [
        ("me/V3-FP8", "float8", ("deepseek-ai/DeepSeek-V3",), "quant of 'deepseek-ai/DeepSeek-V3'"),
        ("me/V3", None, ("deepseek-ai/DeepSeek-V3",), "https://huggingface.co/deepseek-ai/Deep"),
        ("a-folder", "float8", ("Qwen/Qwen3-8B",), "'a-folder' is a quant of 'Qwen/Qwen3-8B'"),
        ("me/V3-FP8", "float8", (), "quantized already"),
        ("me/V3.w4a16", "compressed-tensors", (), "quantized already"),
        ("Qwen/Qwen3-8B-AWQ", "AWQ", (), r"quantized already \(AWQ\)"),
        ("Qwen/Qwen3-8B-AWQ", "AWQ", ("Qwen/Qwen3-8B",), "Use that model"),
        ("me/model", "MLX", (), r"\(MLX\)"),
        ("me/model", "bitsandbytes NF4 or FP4", (), "bitsandbytes"),
        ("", "GPTQ", (), "This model is quantized already"),
    ],
)
def test_what_somebody_else_made_smaller_is_refused_and_its_base_named(name, form, bases, words):
    with pytest.raises(QuantizedSourceError, match=words) as caught:
        require_original(name, form=form, quantized_from=bases)
    assert caught.value.reason is Reason.ALREADY_QUANTIZED
    assert "--dequantize" in str(caught.value)


@pytest.mark.parametrize(
    ("card", "bases"),
    [
        ({}, ()),
        ({"base_model": "a/b"}, ()),
        ({"base_model": "a/b", "base_model_relation": "finetune"}, ()),
        ({"base_model": "a/b", "base_model_relation": "quantized"}, ("a/b",)),
        ({"base_model": ["a/b", 3, ""], "base_model_relation": "quantized"}, ("a/b",)),
        ({"base_model": {"x": 1}, "base_model_relation": "quantized"}, ()),
    ],
)
def test_the_base_model_is_read_from_a_card(card, bases):
    assert quantized_from_card(card) == bases


def test_the_base_model_is_read_from_the_tags_of_the_hub():
    assert quantized_from_tags(["fp8", "base_model:a/b", "base_model:quantized:a/b"]) == ("a/b",)
