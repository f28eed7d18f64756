from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dynquant.errors import QuantizedSourceError, UnsupportedModelError
from dynquant.quant.header_inventory import header_inventory
from tests.fakes import make_source


def write_header(file: Path, **shapes: list[int]) -> None:
    entries = {name: {"dtype": "F32", "shape": shape} for name, shape in shapes.items()}
    raw = json.dumps(entries).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw)


def write_tensors(folder: Path, config: dict, **tensors: tuple[str, list[int]]) -> None:
    entries = {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in tensors.items()}
    raw = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))


FLOAT8 = {
    "a.weight": ("F8_E4M3", [256, 128]),
    "a.weight_scale_inv": ("F32", [2, 1]),
    "a.input_scale": ("F32", []),
    "norm.weight": ("BF16", [128]),
}


def test_an_original_in_low_precision_is_counted_as_it_is_dequantized(tmp_path):
    write_tensors(tmp_path, {"quantization_config": {"quant_method": "fp8"}}, **FLOAT8)
    inventory = header_inventory(make_source(folder=tmp_path)).inventory
    assert [(layer.path, layer.shape) for layer in inventory.layers] == [("a.weight", (256, 128))]
    assert inventory.num_parameters == 256 * 128 + 128


@pytest.mark.parametrize(
    ("config", "source", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, {}, "GPTQ"),
        ({}, {"quantized_from": ("Qwen/Qwen3-8B",)}, "quant of 'Qwen/Qwen3-8B'"),
        ({}, {"name": "me/Qwen3-8B-FP8"}, "quantized already"),
    ],
)
def test_somebody_s_quant_is_refused(tmp_path, config, source, words):
    write_tensors(tmp_path, config, **FLOAT8)
    with pytest.raises(QuantizedSourceError, match=words):
        header_inventory(replace(make_source(folder=tmp_path), **source))


def test_a_float32_model_is_counted_as_it_will_be_stored(tmp_path):
    wide = {"a.weight": ("F32", [64, 128]), "norm.weight": ("F32", [128])}
    write_tensors(tmp_path, {}, **wide)
    inventory = header_inventory(make_source(folder=tmp_path)).inventory
    assert inventory.max_bpw == 16
    write_tensors(tmp_path, {"torch_dtype": "bfloat16"}, **wide)
    assert header_inventory(make_source(folder=tmp_path)).inventory.max_bpw == 32


def test_codes_without_scales_are_refused(tmp_path):
    write_tensors(tmp_path, {}, **{"a.weight": ("F8_E4M3", [256, 128])})
    with pytest.raises(UnsupportedModelError, match="no scale is beside it"):
        header_inventory(make_source(folder=tmp_path))


def test_a_second_copy_of_the_weights_is_not_counted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    index = {"weight_map": {"a": "model-1.safetensors", "mtp": "mtp.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("model-1.safetensors", "model.safetensors"):
        write_header(tmp_path / name, a=[4, 32])
    write_header(tmp_path / "mtp.safetensors", mtp=[4, 32])
    inventory = header_inventory(make_source(folder=tmp_path)).inventory
    assert [layer.path for layer in inventory.layers] == ["a"]
    assert inventory.num_parameters == 4 * 32


def vision_headers(folder: Path, **config: object) -> Path:
    """Headers of a model with a language layer, a tower and a head that drafts."""
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_vl", **config}))
    shapes = {
        "model.language_model.layers.0.mlp.up_proj.weight": [64, 64],
        "model.visual.blocks.0.attn.qkv.weight": [32, 32],
        "mtp.layers.0.mlp.up_proj.weight": [64, 64],
    }
    write_header(folder / "model.safetensors", **shapes)
    return folder


def test_a_tower_is_kept_as_it_is_and_counts(tmp_path):
    found = header_inventory(make_source(folder=vision_headers(tmp_path)))
    inventory = found.inventory
    assert inventory.num_parameters == 64 * 64 + 32 * 32
    assert inventory.num_tower_parameters == 32 * 32
    assert inventory.tower_bits == inventory.fixed_bits == 32 * 32 * 32
    assert [layer.path for layer in inventory.layers] == [
        "model.language_model.layers.0.mlp.up_proj.weight"
    ]


def test_parts_that_a_quant_lacks_are_named_and_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("dynquant.quant.header_inventory.keeps_tower", lambda _: False)
    found = header_inventory(make_source(folder=vision_headers(tmp_path)))
    assert found.inventory.num_parameters == 64 * 64
    vision, drafting = found.notes
    assert "vision part of the source (1 tensor) is left out" in vision
    assert "(MTP, 1 tensor)" in drafting
