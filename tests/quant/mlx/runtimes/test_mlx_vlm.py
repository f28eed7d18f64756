"""A small model that sees images goes from folder to folder, and stock mlx-vlm sees the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from dynquant.errors import InfeasibleTargetError, InvalidModelError, VerificationError
from dynquant.quant.allocate import allocate
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.comparing import mean_kl_nats, streamed_logits
from dynquant.quant.mlx.inventory import inventory_of
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.model_inputs import ModelInputs
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.reference import sample_windows
from dynquant.quant.mlx.runtimes.mlx_lm import MlxLm
from dynquant.quant.mlx.runtimes.mlx_vlm import MlxVlm
from dynquant.quant.mlx.stock_run import StockFailedError, StockRequest, StockRun, run_stock
from dynquant.quant.mlx.streaming import BlockModel
from dynquant.quant.mlx.verify import verify_folder
from dynquant.quant.plan import QuantPlan
from dynquant.quant.recipe import EFFORTS
from tests.quant.mlx.factories import make_windows
from tests.vision import make_vision_model

pytest.importorskip("mlx_vlm")

MENU = tuple(map(QuantFormat.from_name, ("4g32", "4g64", "8g32", "unquantized")))
TOWER = ("vision_tower.", "multi_modal_projector.")


def windows_for(folder: Path):
    vocab = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    return make_windows(np.random.default_rng(0).integers(3, vocab - 8, (12, 64)))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_vision_model(tmp_path_factory.mktemp("seer") / "source")


@pytest.fixture(scope="module")
def run(source) -> StockRun:
    """Logits of the source in stock mlx-vlm, and the inputs of an image."""
    sample = sample_windows(windows_for(source).tokens)
    return run_stock(source, StockRequest(runtime="mlx-vlm", windows=sample, image=True))


@pytest.fixture(scope="module")
def written(source, tmp_path_factory) -> tuple[Path, QuantPlan]:
    """The model at a size between its smallest and its largest, as the encoder writes it."""
    folder = tmp_path_factory.mktemp("seer") / "written"
    folder.mkdir()
    quantizer, windows = MlxQuantizer(source, name="seer"), windows_for(source)
    inventory = quantizer.inventory(MENU)
    quantizer.check_source(windows)
    table = quantizer.measure(
        windows, menu=MENU, encoder="gptq", seed=0, on_step=lambda _step, _amount=1: None
    )
    target = (inventory.min_bpw + inventory.max_bpw) / 2
    plan = allocate(table.inventory, target_bpw=target)
    quantizer.encode(
        {folder: plan},
        windows,
        encoder="gptq",
        importance=table.importance,
        on_step=lambda _step, _amount=1: None,
    )
    return folder, plan


def test_a_model_with_a_tower_is_opened_by_mlx_vlm(source):
    opened = open_model(source)
    assert isinstance(opened.runtime, MlxVlm)
    assert opened.has_tower
    assert opened.left_out == {}


def test_the_language_model_alone_is_opened_by_mlx_lm(source):
    opened = open_model(source, tower="none")
    assert isinstance(opened.runtime, MlxLm)
    assert not opened.has_tower
    assert [str(part) for part in opened.left_out] == ["vision"]


def test_only_layers_of_the_language_model_are_quantized(source):
    layers = inventory_of(open_model(source), MENU).layers
    assert len(layers) == 2 + 2 * 7  # embedding, head, two blocks
    assert all(layer.path.startswith("language_model.") for layer in layers)


def test_the_tower_counts_as_stored(source):
    opened = open_model(source)
    inventory = inventory_of(opened, MENU)
    tower = sum(a.nbytes for p, a in opened.lazy_weights().items() if p.startswith(TOWER))
    text = inventory_of(open_model(source, tower="none"), MENU)
    assert inventory.fixed_bits - text.fixed_bits - 8 * tower < 8 * 4096  # constants of the tower
    assert inventory.fixed_bits - text.fixed_bits >= 8 * tower


def test_a_target_below_the_tower_is_refused_with_the_least_that_works(source):
    inventory = inventory_of(open_model(source), MENU)
    with pytest.raises(InfeasibleTargetError) as raised:
        allocate(inventory, target_bpw=4.5)
    assert raised.value.min_bpw == pytest.approx(inventory.min_bpw)


def test_the_engine_computes_what_stock_mlx_vlm_does_of_text_and_of_an_image(source, run):
    opened = open_model(source)
    blocks = BlockModel(opened.skeleton)
    assert blocks.survey(opened.lazy_weights())
    assert len(blocks.blocks) == 2
    assert run.image is not None
    sample = sample_windows(windows_for(source).tokens)
    found = streamed_logits(blocks, opened.lazy_weights, [*sample, run.image])
    assert mean_kl_nats(found, run.computed) < 1e-6


def test_another_image_gives_other_logits(source, run):
    """The comparison above would notice a tower that is not used."""
    opened = open_model(source)
    blocks = BlockModel(opened.skeleton)
    blocks.survey(opened.lazy_weights())
    assert run.image is not None
    other = ModelInputs(
        run.image.tokens,
        {**run.image.others, "pixel_values": 1.0 - run.image.others["pixel_values"]},
    )
    found = streamed_logits(blocks, opened.lazy_weights, [run.image, other])
    assert mean_kl_nats(found[:1], found[1:]) > 1e-4


def test_the_tower_is_written_bit_for_bit(source, written):
    folder, plan = written
    before, after = open_model(source).stored_weights(), open_model(folder, dequantize=True)
    stored = after.stored_weights()
    tower = [path for path in before if path.startswith(TOWER)]
    assert tower
    assert all(mx.array_equal(before[path], stored[path]).item() for path in tower)
    assert not any(path.startswith(TOWER) for path in plan.formats)


def test_the_written_model_runs_in_both_stock_runtimes(source, written):
    folder, plan = written
    windows = windows_for(source)
    quantizer = MlxQuantizer(source, name="seer")
    found = quantizer.verify(folder, plan, windows, effort=EFFORTS["normal"])
    assert found.runtimes == ("mlx-vlm", "mlx-lm")
    assert found.saw_image
    assert found.speed is not None
    assert found.sample.startswith("The")


def test_the_written_config_describes_the_tower_and_what_is_quantized(source, written):
    folder, plan = written
    config = json.loads((folder / "config.json").read_text())
    original = json.loads((source / "config.json").read_text())
    assert config["vision_config"] == original["vision_config"]
    assert config["quantization"] == config["quantization_config"]
    assert (folder / "preprocessor_config.json").is_file()
    kept = [path for path, fmt in plan.formats.items() if fmt == UNQUANTIZED]
    assert all(config["quantization"][path] is False for path in kept)


def test_a_tower_that_was_damaged_on_the_way_is_noticed(source, written, tmp_path):
    folder, plan = written
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    file = broken / "model.safetensors"
    weights = dict(mx.load(str(file)))  # type: ignore[arg-type]
    name = next(path for path in weights if path.endswith("merger.linear_fc2.weight"))
    weights[name] = weights[name] * 3
    mx.eval(weights)
    mx.save_safetensors(str(file), weights, {"format": "mlx"})
    opened = open_model(source)
    blocks = BlockModel(opened.skeleton)
    blocks.survey(opened.lazy_weights())
    written_weights = open_model(folder, dequantize=True).lazy_weights
    with pytest.raises(VerificationError, match="computes something else than was planned"):
        verify_folder(
            broken,
            stored_bpw=plan.stored_bpw,
            windows=sample_windows(windows_for(source).tokens),
            planned=lambda inputs: streamed_logits(blocks, written_weights, inputs),
            runtime="mlx-vlm",
        )


def test_a_processor_that_does_not_load_is_named_before_the_work(source, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    (folder / "preprocessor_config.json").write_text('{"image_mean": "grey"}')
    with pytest.raises(InvalidModelError, match="--text-only"):
        MlxQuantizer(folder, name="seer").check_source(windows_for(source))


@pytest.mark.harden("hostile models")
def test_python_files_of_a_source_never_run(source, tmp_path):
    folder, proof = tmp_path / "source", tmp_path / "ran"
    shutil.copytree(source, folder)
    code = f"open({str(proof)!r}, 'w')\nclass Processor: pass\n"
    (folder / "processing_own.py").write_text(code)
    auto_map = {"AutoProcessor": "processing_own.Processor"}
    config = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    MlxQuantizer(folder, name="seer").check_source(windows_for(source))
    assert not proof.exists()


@pytest.mark.harden("hostile models")
def test_a_source_is_not_changed(source, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    MlxQuantizer(folder, name="seer").check_source(windows_for(source))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_what_stock_mlx_vlm_refuses_ends_with_its_reason(source, tmp_path):
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no_such_model"}))
    with pytest.raises(StockFailedError, match="no_such_model not supported"):
        run_stock(folder, StockRequest(runtime="mlx-vlm"))


def test_modules_of_the_model_keep_their_paths(source):
    """A quantized layer is named in config.json by the path that mlx-vlm gives it."""
    paths = {path for path, _ in tree_flatten(open_model(source).skeleton.parameters())}
    assert "language_model.model.layers.0.self_attn.q_proj.weight" in paths
    assert "vision_tower.blocks.0.attn.qkv.weight" in paths
