from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model

from dynquant.errors import InvalidModelError, NonFiniteError, UnsupportedModelError
from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.comparing import are_finite, streamed_logits
from dynquant.quant.mlx.inventory import inventory_of
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.model_inputs import ModelInputs
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.reference import check_reference, sample_windows
from dynquant.quant.mlx.stock_run import StockRequest, run_stock
from dynquant.quant.mlx.streaming import BlockModel
from dynquant.quant.uniform import nearest_uniform
from tests.quant.mlx.factories import VOCAB, make_windows, save_model

WINDOWS = make_windows(np.random.default_rng(0).integers(0, VOCAB, (12, 64)))
SAMPLE = sample_windows(WINDOWS.tokens)
MENU = (QuantFormat.from_name("8g32"),)
UP, DOWN = "mlp.up_proj.weight", "mlp.down_proj.weight"


def change_weights(folder: Path, change: Callable[[dict[str, mx.array]], None]) -> Path:
    file = folder / "model.safetensors"
    weights = dict(cast("dict[str, mx.array]", mx.load(str(file))))
    change(weights)
    mx.eval(list(weights.values()))
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    return folder


def change_config(folder: Path, **values: object) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def enlarge(weights: dict[str, mx.array], name: str, factor: float) -> None:
    for path in [path for path in weights if path.endswith(name)]:
        weights[path] = (weights[path].astype(mx.float32) * factor).astype(weights[path].dtype)


def engine_logits(folder: Path) -> list[np.ndarray]:
    opened = open_model(folder)
    blocks = BlockModel(opened.skeleton)
    assert blocks.survey(opened.lazy_weights())
    return streamed_logits(blocks, opened.lazy_weights, SAMPLE)


def no_image(_inputs: Sequence[ModelInputs]) -> list[np.ndarray]:
    raise AssertionError("this model sees no images")


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("reference") / "model")


def test_a_sound_source_passes_in_a_process_of_its_own(sound):
    assert check_reference(open_model(sound), engine_logits(sound), SAMPLE, no_image)


def test_logits_of_another_model_end_the_job(sound, tmp_path):
    other = change_weights(save_model(tmp_path / "other"), lambda w: enlarge(w, UP, 1.5))
    with pytest.raises(InvalidModelError, match="computes something else"):
        check_reference(open_model(sound), engine_logits(other), SAMPLE, no_image)


def test_a_source_that_computes_nan_ends_the_job(sound):
    nan = [np.full_like(logits, np.nan) for logits in engine_logits(sound)]
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        check_reference(open_model(sound), nan, SAMPLE, no_image)


def test_a_model_larger_than_memory_is_compared_block_by_block(sound):
    whole, by_blocks = (
        run_stock(sound, StockRequest(windows=SAMPLE, by_blocks=each)) for each in (False, True)
    )
    assert by_blocks.own is None
    assert by_blocks.stored_bpw == whole.stored_bpw
    for one, other in zip(whole.computed, by_blocks.computed, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_stock_mlx_lm_is_told_what_dynquant_reads_otherwise(tmp_path):
    folder = change_config(save_model(tmp_path / "model", "llama", vocab_size=VOCAB))
    path = folder / "config.json"
    config = json.loads(path.read_text())
    theta = config.pop("rope_theta")
    ropes = {"rope_type": "default", "rope_theta": 30 * theta}
    path.write_text(json.dumps(config | {"rope_parameters": ropes}))
    quantizer = MlxQuantizer(folder, name="model")
    quantizer.check_source(WINDOWS)
    assert quantizer._model.settings["rope_theta"] == 30 * theta


def test_a_head_that_the_config_ties_away_ends_the_job(tmp_path):
    folder = save_model(tmp_path / "model", tie_word_embeddings=False)
    quantizer = MlxQuantizer(change_config(folder, tie_word_embeddings=True), name="model")
    with pytest.raises(UnsupportedModelError, match="tie_word_embeddings"):
        quantizer.check_source(WINDOWS)


def test_a_copy_of_the_embedding_may_be_tied_away(tmp_path):
    def copy_embedding(weights: dict[str, mx.array]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]

    folder = save_model(tmp_path / "model", tie_word_embeddings=True)
    MlxQuantizer(change_weights(folder, copy_embedding), name="model").check_source(WINDOWS)


def silent_about_tying(folder: Path, family: str, *, tied: bool) -> Path:
    save_model(folder, family, vocab_size=VOCAB, tie_word_embeddings=tied)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["tie_word_embeddings"]
    path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_stored_head_under_a_silent_config_is_kept(tmp_path, family):
    opened = open_model(silent_about_tying(tmp_path / "model", family, tied=False))
    assert "lm_head" in {layer.path for layer in inventory_of(opened, MENU).layers}
    assert opened.config["tie_word_embeddings"] is False


def test_a_module_that_insists_on_an_answer_gets_that_of_the_tensors(tmp_path):
    opened = open_model(silent_about_tying(tmp_path / "model", "qwen3", tied=True))
    assert "lm_head" not in {layer.path for layer in inventory_of(opened, MENU).layers}
    assert opened.config["tie_word_embeddings"] is True


def written(quantizer: MlxQuantizer, out: Path) -> Path:
    _, plan = nearest_uniform(quantizer.inventory(MENU), 9.0)
    out.mkdir()
    quantizer.encode(
        {out: plan}, WINDOWS, encoder="minmax", importance={}, on_step=lambda _s, _n=1: None
    )
    return out


def test_a_float16_source_that_overflows_is_stored_in_bfloat16_and_says_so(tmp_path):
    def overflow(weights: dict[str, mx.array]) -> None:
        enlarge(weights, UP, 3e4)
        enlarge(weights, DOWN, 1e-4)

    folder = save_model(tmp_path / "model", dtype=mx.float16, torch_dtype="float16")
    quantizer = MlxQuantizer(change_weights(folder, overflow), name="model")
    assert quantizer.inventory(MENU).dtype == "float16"
    quantizer.check_source(WINDOWS)
    assert quantizer.inventory(MENU).dtype == "bfloat16"
    assert any("float16" in note and "bfloat16" in note for note in quantizer.notes)

    out = written(quantizer, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    run = run_stock(out, StockRequest(windows=SAMPLE))
    assert run.own is not None
    assert are_finite(run.own)


def test_a_float16_source_within_its_range_stays_as_it_is(tmp_path):
    folder = save_model(tmp_path / "model", dtype=mx.float16, torch_dtype="float16")
    quantizer = MlxQuantizer(folder, name="model")
    quantizer.check_source(WINDOWS)
    assert quantizer.inventory(MENU).dtype == "float16"
    assert quantizer.notes == ()
    quantizer.store_as("bfloat16")  # as a cost table may say
    assert quantizer.inventory(MENU).dtype == "bfloat16"


def test_a_bfloat16_source_that_its_config_calls_float16_is_never_cast_down(tmp_path):
    folder = save_model(tmp_path / "model", dtype=mx.bfloat16, torch_dtype="float16")
    quantizer = MlxQuantizer(folder, name="model")
    assert quantizer.inventory(MENU).dtype == "bfloat16"
    out = written(quantizer, tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "bfloat16"
    model, _ = load_model(out)
    assert model.model.norm.weight.dtype == mx.bfloat16
