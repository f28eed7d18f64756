from __future__ import annotations

import pytest

from dynquant.model.files import has_odd_name, is_fetched, is_taken_over, is_weights

# Spelled as in repos of the models named.
TOKENIZERS = [
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model",  # Llama, Qwen, BERT
    "tekken.json", "tekken_240718.json", "tokenizer.model.v3", "tokenizer.model.v7m1",  # Mistral
    "tiktoken.model", "qwen.tiktoken", "hy.tiktoken",  # Kimi, Qwen 1, Hunyuan
    "sentencepiece.bpe.model", "spiece.model", "ice_text.model", "source.spm",  # XLM-R, T5, GLM
    "bpe.codes", "vocab.bpe", "tokenizer.4.0.0.json", "normalizer.json",
]  # fmt: skip
TEMPLATES = [
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/tool_use.jinja",
    "additional_chat_templates/rag v2.jinja",
]  # fmt: skip
PROCESSORS = [
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "audio_tokenizer_config.json", "generation_config.json",
]  # fmt: skip
LEGAL = [
    "LICENSE", "LICENCE", "license", "License.md", "license.txt", "LICENSE.txt", "UNLICENSE",
    "MODEL_LICENSE", "LICENSE-MODEL", "LICENSE-CODE",  # GLM, DeepSeek, MiniMax
    "Tongyi Qianwen LICENSE AGREEMENT", "LICENSE AGREEMENT.pdf", "NOTICE.txt",  # Qwen
    "USE_POLICY.md", "USAGE_POLICY", "acceptable_use_policy.txt", "Notice.txt",  # Llama, gpt-oss
    "LICENSE.MIT", "LICENSE-APACHE-2.0", "COPYING", "COPYING.LESSER", "COPYRIGHT",
    "Baichuan2 模型社区许可协议.pdf", "NVIDIA_Open_Model_License.pdf", "GEMMA_TERMS.md",
    "TERMS_OF_USE.md", "EULA.rtf", "LEGAL.md", "THIRD_PARTY_NOTICES.md", "ThirdPartyNotices.txt",
    "ACKNOWLEDGEMENTS", "LICENSES/Apache-2.0.txt", "licenses/MIT",
]  # fmt: skip
ELSE = [
    "README.md", "config.json", "model.safetensors.index.json", "hf_quant_config.json",
    ".gitattributes", ".DS_Store", "params.json", "recipe.yaml", "trainer_state.json",
    "pytorch_model.bin.index.json", "quantize_config.json", "adapter_config.json",
    "tokenization_qwen.py", "tokenizer.py", "license.py", "tokenizer.bin", "tokenizer.safetensors",
    "processor.safetensors", "vocab.pkl", "license_plates.onnx", "notice.gguf", "tokenizer.json.gz",
    "model.safetensors", "consolidated.safetensors", "terms.h5", "parameters.md", "MODEL_CARD.md",
    "original/tokenizer.model", "onnx/tokenizer.json", "original/LICENSE", ".cache/LICENSE",
    "additional_chat_templates/run.py", "additional_chat_templates/a/b.jinja",
    "additional_chat_templates/.hidden.jinja", "additional_chat_templates/...jinja",
    "LICENSES/setup.py", "LICENSES/.git", "../LICENSE", "/etc/LICENSE", "../tokenizer.json",
    "additional_chat_templates/../../x.jinja", "..", "", "LICENSES/", "additional_chat_templates/",
]  # fmt: skip


@pytest.mark.parametrize("name", TOKENIZERS + TEMPLATES + PROCESSORS + LEGAL)
def test_what_makes_tokenizer_templates_and_license_is_fetched_and_taken_over(name):
    assert is_taken_over(name)
    assert is_fetched(name)
    assert not has_odd_name(name)


@pytest.mark.parametrize("name", ELSE)
def test_nothing_else_is_taken_over(name):
    assert not is_taken_over(name)


def test_what_a_quant_has_of_its_own_is_fetched_to_be_read():
    read = {"config.json", "model.safetensors.index.json", "hf_quant_config.json", "README.md"}
    assert {name for name in ELSE if is_fetched(name)} == read


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.safetensors", True),
        ("model-00001-of-00002.safetensors", True),
        ("model_extra.safetensors", True),
        ("model\n.safetensors", True),
        ("mtp.safetensors", False),
        ("consolidated.safetensors", False),
        ("original/model.safetensors", False),
        ("model/a.safetensors", False),
        ("model.safetensors.index.json", False),
        ("model.bin", False),
    ],
)
def test_weights_are_the_files_that_mlx_lm_reads(name, expected):
    assert is_weights(name) == expected


@pytest.mark.parametrize("name", ["a\n.jinja", "x\u202ey.json", "\x1b[2J.txt", "x" * 201])
def test_long_and_invisible_names_are_odd(name):
    assert has_odd_name(name)
