"""Heads that draft tokens stay beside the model, where stock loaders skip them."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.headers import read_header
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.shards import copy_tensors
from dynquant.quant.uniform import nearest_uniform
from tests.families import save
from tests.quant.mlx.factories import make_windows

MENU = (QuantFormat(4, 32),)


def with_drafting_head(folder: Path) -> dict[str, mx.array]:
    """A source whose loader drops tensors of a drafting head; these tensors."""
    save("qwen3_5", folder)
    head = {
        "mtp.fc.weight": mx.random.normal((128, 256)).astype(mx.bfloat16),
        "mtp.layers.0.input_layernorm.weight": mx.random.normal((128,)).astype(mx.bfloat16),
    }
    mx.save_safetensors(str(folder / "model-mtp.safetensors"), head, {"format": "pt"})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        content["weight_map"] |= dict.fromkeys(head, "model-mtp.safetensors")
        index.write_text(json.dumps(content))
    return head


@pytest.fixture
def converted(tmp_path) -> tuple[Path, dict[str, mx.array], MlxQuantizer]:
    source, out = tmp_path / "source", tmp_path / "out"
    out.mkdir()
    head = with_drafting_head(source)
    quantizer = MlxQuantizer(source, name="qwen3_5")
    _, plan = nearest_uniform(quantizer.inventory(MENU), 5.0)
    windows = make_windows(np.random.default_rng(0).integers(3, 200, (12, 16)))
    quantizer.encode(
        {out: plan},
        windows,
        encoder="minmax",
        importance={},
        on_step=lambda _step, _amount=1: None,
    )
    return out, head, quantizer


def test_the_heads_are_kept_byte_for_byte_outside_the_index(converted):
    out, head, quantizer = converted
    kept = mx.load(str(out / "mtp.safetensors"))
    assert isinstance(kept, dict)
    assert kept.keys() == head.keys()
    assert all(mx.array_equal(kept[name], head[name]).item() for name in head)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert not index["weight_map"].keys() & head.keys()
    assert any("kept as they are in 'mtp.safetensors'" in note for note in quantizer.notes)


def test_stock_mlx_lm_loads_the_model_beside_them(converted):
    out, _, _ = converted
    model, _ = mlx_lm.load(str(out))[:2]
    assert model(mx.array([[1, 2, 3]])).shape[:2] == (1, 3)


def test_mlx_vlm_finds_them_for_a_drafter(converted):
    splitting = pytest.importorskip("mlx_vlm.speculative.drafters.mtp_split")
    out, head, _ = converted
    splitter = splitting.get_mtp_splitter("qwen3_5")
    found = [name for _, names in splitter.iter_selected(out, {}) for name in names]
    assert sorted(found) == sorted(head)


def test_a_model_without_such_heads_has_no_such_file(tmp_path):
    save("qwen3_5", tmp_path / "source")
    assert MlxQuantizer(tmp_path / "source", name="a")._model.drafting == []


def test_tensors_are_copied_from_several_files(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    arrays = {"x": mx.arange(5), "y": mx.ones((2, 3), mx.bfloat16), "z": mx.zeros(1)}
    mx.save_safetensors(str(files[0]), {"x": arrays["x"], "z": arrays["z"]})
    mx.save_safetensors(str(files[1]), {"y": arrays["y"]})
    copy_tensors(files, ["y", "x"], tmp_path / "c.safetensors")
    assert read_header(tmp_path / "c.safetensors").keys() == {"x", "y"}
    found = mx.load(str(tmp_path / "c.safetensors"))
    assert isinstance(found, dict)
    assert all(mx.array_equal(found[name], arrays[name]).item() for name in ("x", "y"))
