from __future__ import annotations

import pytest
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not in its __all__
from hypothesis import given
from hypothesis import strategies as st

from dynquant.core.naming import MAX_NAME_LENGTH, quantized_name


@pytest.mark.parametrize(
    ("source", "target_bpw", "name"),
    [
        ("Qwen/Qwen3-8B", 4.5, "Qwen3-8B-MLX-4.5bpw"),
        ("Qwen/Qwen3-8B", 4.0, "Qwen3-8B-MLX-4.0bpw"),
        ("Qwen/Qwen3-8B", 4, "Qwen3-8B-MLX-4.0bpw"),
        ("Qwen/Qwen3-8B", 4.25, "Qwen3-8B-MLX-4.25bpw"),
        ("Qwen/Qwen3-8B", 0.1 + 0.2 + 4.0, "Qwen3-8B-MLX-4.3bpw"),
        ("my-folder/", 3.5, "my-folder-MLX-3.5bpw"),
        ("C:\\models\\tiny", 3.5, "tiny-MLX-3.5bpw"),
        ("my model (v2)", 3.5, "my-model-v2-MLX-3.5bpw"),
        ("-.a--b..c-.", 3.5, "a-b.c-MLX-3.5bpw"),
        ("modèle", 3.5, "modele-MLX-3.5bpw"),
        ("模型", 3.5, "model-MLX-3.5bpw"),
        ("", 3.5, "model-MLX-3.5bpw"),
    ],
)
def test_the_name_says_model_and_size(source, target_bpw, name):
    assert quantized_name(source, target_bpw) == name


def test_a_long_name_is_cut_before_its_size():
    name = quantized_name("a" * 84 + "-bcd", 4.5)
    assert name == "a" * 84 + "-MLX-4.5bpw"
    assert len(quantized_name("b" * 300, 4.5)) == MAX_NAME_LENGTH


@given(
    source=st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9._/-]{0,120}", fullmatch=True),
    target_bpw=st.floats(min_value=0.5, max_value=64),
)
def test_the_hub_takes_every_name(source, target_bpw):
    name = quantized_name(source, target_bpw)
    validate_repo_id(name)
    validate_repo_id(f"someone/{name}")
    assert not set("-.") & {name[0], name[-1]}
