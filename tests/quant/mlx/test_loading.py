from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.models.bitlinear_layers import bitnet_quantize
from mlx_lm.utils import (
    compute_bits_per_weight,
    get_total_parameters,
    load_model,
    quantize_model,
    save_config,
)
from mlx_lm.utils import save_model as save_weights

from dynquant.errors import InvalidModelError, UnsupportedModelError
from dynquant.quant.formats import DEFAULT_MENU, UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.arrays import compute_dtype, scalar
from dynquant.quant.mlx.inventory import inventory_of
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.parameters import clear_parameters, quantizable, set_parameter
from tests.quant.mlx.factories import build_model, save_model

MENU = (QuantFormat(4, 32), QuantFormat(8, 64), QuantFormat(4, 32, "mxfp4"), UNQUANTIZED)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def save_quantized(folder: Path, family: str = "qwen3", *, mode: str = "affine", bits: int = 8):
    """A folder as `mlx_lm.convert -q` would write it."""
    model, config = build_model(family)
    model, config = quantize_model(model, config, 32, bits, mode=mode)
    folder.mkdir()
    save_weights(folder, model)
    save_config(config, folder / "config.json")
    return folder


def test_the_weights_are_those_that_mlx_lm_loads(model_folder):
    stock, _ = load_model(model_folder, lazy=True)
    weights = open_model(model_folder).lazy_weights()
    leaves = dict(stock.parameters())
    assert leaves
    assert all(array.dtype == mx.bfloat16 for array in weights.values())
    expected = stock.model.layers[1].mlp.up_proj.weight
    assert mx.array_equal(weights["model.layers.1.mlp.up_proj.weight"], expected).item()


def test_the_files_of_the_index_count_and_not_an_older_export_beside_them(model_folder):
    before = open_model(model_folder).lazy_weights()
    expected = before["model.layers.1.mlp.up_proj.weight"].tolist()
    stale: Any = mx.load(str(model_folder / "model.safetensors"))
    stale = {name: array * 2 for name, array in stale.items()}
    mx.eval(stale)
    shard = model_folder / "model-00001-of-00001.safetensors"
    (model_folder / "model.safetensors").rename(shard)
    index = {"weight_map": dict.fromkeys(stale, shard.name)}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("model.safetensors", "model-0.safetensors"):  # before and behind it in any order
        mx.save_safetensors(str(model_folder / name), stale)
    weights = open_model(model_folder).lazy_weights()
    assert weights["model.layers.1.mlp.up_proj.weight"].tolist() == expected


def test_opening_a_model_reads_no_weights(model_folder):
    start = mx.get_active_memory()
    opened = open_model(model_folder)
    assert len(opened.lazy_weights()) > 10
    assert inventory_of(opened, MENU).num_parameters > 10**5
    assert mx.get_active_memory() - start < 10**5


@pytest.mark.parametrize("key", ["torch_dtype", "dtype"])
def test_weights_take_the_dtype_that_the_config_names(model_folder, key):
    """As `mlx_lm.convert` does; it settles the size of scales and biases."""
    change_config(model_folder, **{key: "float32"})
    weights = open_model(model_folder).lazy_weights()
    assert {array.dtype for array in weights.values()} == {mx.float32}


@pytest.mark.parametrize("name", ["torch.float32", "float32"])
def test_the_dtype_may_stand_in_the_text_config(model_folder, name):
    change_config(model_folder, text_config={"dtype": name})
    opened = open_model(model_folder)
    assert {array.dtype for array in opened.lazy_weights().values()} == {mx.float32}
    assert inventory_of(opened, MENU).dtype == "float32"


@pytest.mark.parametrize("config", [{"torch_dtype": "float32"}, {"dtype": None}, {}])
def test_a_float32_model_may_be_halved(tmp_path, config):
    folder = save_model(tmp_path / "model", dtype=mx.float32)
    change_config(folder, **config)
    assert inventory_of(open_model(folder), MENU).dtype == "float32"
    opened = open_model(folder, halves_float32=True)
    assert opened.is_halved
    assert {array.dtype for array in opened.lazy_weights().values()} == {mx.bfloat16}
    assert inventory_of(opened, MENU).dtype == "bfloat16"


@pytest.mark.parametrize("config", [{"torch_dtype": "bfloat16"}, {}])
def test_a_model_of_16_bits_keeps_what_it_has_in_float32(model_folder, config):
    change_config(model_folder, **config)
    shard = model_folder / "model.safetensors"
    weights = mx.load(str(shard))
    assert isinstance(weights, dict)
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(mx.float32)
    mx.eval(list(weights.values()))
    mx.save_safetensors(str(shard), weights, metadata={"format": "mlx"})
    found = open_model(model_folder, halves_float32=True)
    plain = open_model(model_folder).lazy_weights()
    assert not found.is_halved
    dtypes = {name: array.dtype for name, array in found.lazy_weights().items()}
    assert dtypes == {name: array.dtype for name, array in plain.items()}


@pytest.mark.parametrize("value", [None, "int7", 3])
def test_a_dtype_that_nobody_knows_changes_nothing(model_folder, value):
    change_config(model_folder, torch_dtype=value)
    weights = open_model(model_folder).lazy_weights()
    assert {array.dtype for array in weights.values()} == {mx.bfloat16}


def test_the_inventory_counts_as_mlx_lm_does(model_folder):
    inventory = inventory_of(open_model(model_folder), DEFAULT_MENU)
    stock, _ = load_model(model_folder)
    assert inventory.num_parameters == get_total_parameters(stock)
    largest = sum(layer.stored_bits(UNQUANTIZED) for layer in inventory.layers)
    assert inventory.bpw(largest) == pytest.approx(compute_bits_per_weight(stock))
    assert inventory.model_type == "qwen3"
    assert inventory.dtype == "bfloat16"
    assert [layer.path for layer in inventory.layers] == list(quantizable(stock))
    assert all(layer.dtype_bits == 16 for layer in inventory.layers)


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma3_text", "mamba2"])
def test_a_uniform_plan_stores_what_mlx_lm_stores(tmp_path, family):
    """Also where a family brings buffers of its own, such as rope frequencies."""
    folder = save_model(tmp_path / "model", family)
    inventory = inventory_of(
        open_model(folder), (QuantFormat(4, 32), QuantFormat(8, 64), UNQUANTIZED)
    )
    stored = sum(layer.stored_bits(layer.formats[0]) for layer in inventory.layers)
    model, config = load_model(folder)
    model, _ = quantize_model(model, config, 32, 4)
    assert inventory.bpw(stored) == pytest.approx(compute_bits_per_weight(model), abs=1e-9)


def test_a_layer_has_the_formats_that_divide_its_width(tmp_path):
    folder = save_model(tmp_path / "model", hidden_size=96)
    layers = {layer.path: layer for layer in inventory_of(open_model(folder), MENU).layers}
    attention = layers["model.layers.0.self_attn.q_proj"]
    assert attention.shape == (64, 96)
    assert set(attention.formats) == {QuantFormat(4, 32), MENU[2], UNQUANTIZED}
    assert set(layers["model.layers.0.mlp.down_proj"].formats) == set(MENU)


def test_a_layer_that_nothing_on_the_menu_fits_stays_unquantized(model_folder):
    layers = inventory_of(open_model(model_folder), (QuantFormat(4, 128),)).layers
    formats = {layer.path: layer.formats for layer in layers}
    assert formats["model.layers.0.self_attn.q_proj"] == (UNQUANTIZED,)
    assert formats["model.layers.0.mlp.down_proj"] == (QuantFormat(4, 128),)


def test_a_floor_that_the_architecture_sets_is_kept(tmp_path):
    """qwen3_moe asks for eight bits in its routers."""
    folder = save_model(tmp_path / "model", "qwen3_moe")
    layers = {layer.path: layer for layer in inventory_of(open_model(folder), DEFAULT_MENU).layers}
    router = layers["model.layers.0.mlp.gate"]
    assert {fmt.bits for fmt in router.formats if fmt != UNQUANTIZED} == {8}
    assert min(fmt.bits for fmt in layers["lm_head"].formats if fmt.bits) == 2


def test_the_skeleton_holds_no_weights(model_folder):
    skeleton = open_model(model_folder).skeleton
    assert not skeleton.training
    assert skeleton.model.layers[0].mlp.up_proj.weight.size == 0


def test_a_quantized_model_is_refused_unless_asked_for(tmp_path):
    folder = save_quantized(tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="--dequantize"):
        open_model(folder)


@pytest.mark.parametrize("mode", ["affine", "mxfp8"])
@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_a_quantized_model_comes_back_dequantized(tmp_path, family, mode):
    folder = save_quantized(tmp_path / "model", family, mode=mode)
    opened = open_model(folder, dequantize=True)
    original, _ = build_model(family)
    weights = opened.lazy_weights()
    path = "model.layers.1.self_attn.q_proj.weight"
    assert set(weights) == {p for p in weights if not p.endswith((".scales", ".biases"))}
    expected = original.model.layers[1].self_attn.q_proj.weight
    assert weights[path].shape == expected.shape
    assert mx.allclose(weights[path], expected, atol=0.02).item()
    assert "quantization" not in opened.config
    layers = inventory_of(opened, MENU).layers
    assert [layer.path for layer in layers] == list(quantizable(original))
    assert not [p for p in quantizable(opened.skeleton) if p not in {x.path for x in layers}]


def test_a_quantized_model_that_mlx_lm_cannot_load_is_called_damaged(tmp_path):
    folder = save_quantized(tmp_path / "model", "qwen3_moe")
    config = json.loads((folder / "config.json").read_text())
    del config["num_experts"]  # as auto-round writes it
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModelError, match=r"do not fit together: .*'num_experts'"):
        open_model(folder, dequantize=True)


def test_a_scale_of_each_expert_is_part_of_its_weights(tmp_path):
    original, config = build_model("qwen3_moe", hidden_size=64, moe_intermediate_size=64)
    path = "model.layers.1.mlp.switch_mlp.down_proj.weight"
    expected = mx.array(original.model.layers[1].mlp.switch_mlp.down_proj.weight)
    model, config = quantize_model(original, config, 16, 4, mode="nvfp4", global_scale=True)
    folder = tmp_path / "model"
    folder.mkdir()
    save_weights(folder, model)
    save_config(config, folder / "config.json")
    weights = open_model(folder, dequantize=True).lazy_weights()
    error = weights[path].astype(mx.float32) - expected
    assert 0 < scalar(mx.linalg.norm(error)) < 0.15 * scalar(mx.linalg.norm(expected))
    assert not [name for name in weights if name.endswith("global_scale")]


def test_weights_packed_in_a_form_of_their_own_are_refused(tmp_path):
    model, config = build_model("llama")
    settings = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    folder = tmp_path / "model"
    folder.mkdir()
    save_weights(folder, bitnet_quantize(model, settings))
    save_config(config | {"quantization_config": settings}, folder / "config.json")
    with pytest.raises(UnsupportedModelError, match=r"a form of its own .* Use the original"):
        open_model(folder, dequantize=True)


def test_dequantized_weights_are_as_wide_as_this_machine_computes_if_asked_to_be_exact(tmp_path):
    folder = save_model(tmp_path / "model")
    model, config = quantize_model(*load_model(folder), 32, 4)
    (tmp_path / "quantized").mkdir()
    save_weights(tmp_path / "quantized", model)
    save_config(config, tmp_path / "quantized" / "config.json")
    layer = model.model.layers[1].mlp.up_proj
    scales, biases = (each.astype(mx.float32) for each in (layer.scales, layer.biases))
    expected = mx.dequantize(layer.weight, scales, biases, 32, 4)
    opened, path = open_model(tmp_path / "quantized", dequantize=True), "model.layers.1.mlp.up_proj"
    rounded = opened.lazy_weights()[f"{path}.weight"]
    exact = opened.lazy_weights(exact=True)
    assert rounded.dtype == mx.bfloat16
    assert mx.array_equal(rounded, expected.astype(mx.bfloat16)).item()
    assert exact[f"{path}.weight"].dtype == compute_dtype(mx.bfloat16)
    assert mx.array_equal(exact[f"{path}.weight"], expected.astype(exact[f"{path}.weight"].dtype))
    assert exact["model.norm.weight"].dtype == mx.bfloat16


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "awq"}},
        {"text_config": {"quantization_config": {"quant_method": "gptq"}}},
    ],
)
def test_other_quantizations_are_noticed_too(model_folder, config):
    change_config(model_folder, **config)
    with pytest.raises(UnsupportedModelError, match="quantized already"):
        open_model(model_folder)


def test_a_config_that_names_a_form_which_no_tensor_is_in_is_that_of_a_plain_model(model_folder):
    (model_folder / "hf_quant_config.json").write_text("{}")
    change_config(model_folder, quantization_config={"quant_method": "compressed-tensors"})
    opened = open_model(model_folder)
    assert not opened.quantized
    assert opened.lazy_weights().keys() == open_model(model_folder).stored_weights().keys()


def test_an_unknown_architecture_is_unsupported(model_folder):
    change_config(model_folder, model_type="not_there_yet")
    with pytest.raises(
        UnsupportedModelError, match="no architecture for model_type 'not_there_yet'"
    ):
        open_model(model_folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 9},  # weights are missing
        {"num_hidden_layers": 1},  # weights are left over
        {"hidden_size": 65},
        {"intermediate_size": 7},
        {"num_hidden_layers": "three"},
        {"hidden_size": None},
        {"num_attention_heads": 0},  # divides by zero
        {"vocab_size": -1},  # trips an assertion
        {"vocab_size": []},
    ],
)
def test_a_config_that_does_not_fit_the_weights_is_refused(model_folder, changes):
    change_config(model_folder, **changes)
    with pytest.raises(InvalidModelError, match="do not fit together") as raised:
        inventory_of(open_model(model_folder), MENU)
    assert str(model_folder.parent) not in str(raised.value)


@pytest.mark.parametrize("missing", ["hidden_size", "num_hidden_layers", "rms_norm_eps"])
def test_a_config_that_lacks_a_setting_is_refused(model_folder, missing):
    config = json.loads((model_folder / "config.json").read_text())
    del config[missing]
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidModelError, match="do not fit together"):
        open_model(model_folder)


def test_parameters_are_put_in_place_by_path_and_cleared():
    model, _ = build_model()
    set_parameter(model, "model.layers.1.mlp.up_proj.weight", mx.ones((2, 2)))
    assert model.model.layers[1].mlp.up_proj.weight.shape == (2, 2)
    clear_parameters(model)
    assert model.model.layers[1].mlp.up_proj.weight.size == 0
    model.model.spare = [mx.ones(1), mx.ones(1)]
    set_parameter(model, "model.spare.1", mx.zeros(3))
    assert model.model.spare[1].shape == (3,)
