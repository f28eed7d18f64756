from __future__ import annotations

import pytest

from dynquant.model.dropped_tensors import Part, notes_on, part_of, parts_of
from dynquant.model.quantized_sources import Tensor

MATRIX = Tensor("BF16", (64, 64))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vision_tower.layers.0.gate_proj.weight", Part.VISION),
        ("model.visual.blocks.0.attn.qkv.weight", Part.VISION),
        ("multi_modal_projector.linear_1.weight", Part.VISION),
        ("model.audio_tower.conv.weight", Part.AUDIO),
        ("mtp.layers.0.mlp.up_proj.weight", Part.DRAFT),
        ("model.mtp_layers.0.eh_proj.weight", Part.DRAFT),
        ("model.layers.61.mlp.up_proj.weight", Part.DRAFT),
        ("model.layers.60.mlp.up_proj.weight", Part.OTHER),
        ("lm_head.weight", Part.HEAD),
        ("language_model.lm_head.weight", Part.HEAD),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", Part.RECOMPUTED),
        ("model.layers.0.self_attn.k_scale", Part.RECOMPUTED),
        ("model.layers.0.mlp.extra.weight", Part.OTHER),
        ("model.layers.0.self_attn.revision.weight", Part.OTHER),
    ],
)
def test_a_tensor_belongs_to_the_part_that_its_name_tells(name, part):
    assert part_of(name, MATRIX, num_layers=61) is part


def test_masks_and_indices_are_made_anew_by_every_loader():
    for tensor in (Tensor("U8", (64, 64)), Tensor("I64", (1, 64)), Tensor("F32", (1, 1, 64, 64))):
        assert part_of("h.0.attn.bias", tensor, num_layers=None) is Part.RECOMPUTED


def test_parts_count_layers_of_the_language_model():
    names = ["model.layers.2.up.weight", "model.layers.1.up.weight"]
    tensors = dict.fromkeys(names, MATRIX)
    assert parts_of(names, tensors, {"text_config": {"num_hidden_layers": 2}}) == {
        Part.OTHER: ["model.layers.1.up.weight"],
        Part.DRAFT: ["model.layers.2.up.weight"],
    }


def test_a_user_is_told_of_what_they_would_miss_and_of_nothing_else():
    (vision, draft) = notes_on({Part.VISION: ["a", "b"], Part.DRAFT: ["c"], Part.RECOMPUTED: ["d"]})
    assert "vision" in vision
    assert "2 tensors" in vision
    assert "MTP, 1 tensor)" in draft
    assert notes_on({}) == ()
