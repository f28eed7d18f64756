from __future__ import annotations

import pytest

from dynquant.errors import UnsupportedModelError
from dynquant.quant.mlx.runtimes import choice
from dynquant.quant.mlx.runtimes.choice import choose_runtime
from dynquant.quant.mlx.runtimes.mlx_lm import MlxLm
from dynquant.quant.mlx.runtimes.mlx_vlm import MlxVlm

TOWER = ("model.visual.blocks.0.attn.qkv.weight", "model.language_model.layers.0.a.weight")
TEXT = ("model.layers.0.mlp.up_proj.weight",)
ONLY_VLM = {"model_type": "idefics3"}
BOTH = {"model_type": "gemma3"}


@pytest.fixture
def without_mlx_vlm(monkeypatch):
    monkeypatch.setattr(choice, "seeing_families", lambda: None)


def test_a_model_with_a_tower_goes_to_mlx_vlm():
    pytest.importorskip("mlx_vlm")
    assert isinstance(choose_runtime(BOTH, TOWER), MlxVlm)
    assert isinstance(choose_runtime(ONLY_VLM, TEXT), MlxVlm)


def test_a_model_without_a_tower_goes_to_mlx_lm():
    assert isinstance(choose_runtime(BOTH, TEXT), MlxLm)
    assert isinstance(choose_runtime({"model_type": "llama"}, TOWER), MlxLm)


def test_text_only_is_mlx_lm_whatever_the_model():
    assert isinstance(choose_runtime(BOTH, TOWER, text_only=True), MlxLm)


def test_without_the_extra_a_tower_is_left_out(without_mlx_vlm):
    assert isinstance(choose_runtime(BOTH, TOWER), MlxLm)


def test_a_family_that_only_mlx_vlm_has_is_refused_with_the_name_of_the_extra(without_mlx_vlm):
    with pytest.raises(UnsupportedModelError, match=r"'idefics3'.*dynquant\[vlm\]"):
        choose_runtime(ONLY_VLM, TOWER)
