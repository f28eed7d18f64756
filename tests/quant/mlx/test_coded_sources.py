"""Model folders in low precision, opened: the weights are those of the same model dequantized."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from dynquant.errors import QuantizedSourceError, UnsupportedModelError
from dynquant.quant.formats import DEFAULT_MENU, UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.encoding import Encoded, decode
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.plan import QuantPlan
from dynquant.quant.recipe import EFFORTS
from tests.quant.mlx.factories import make_windows, save_model, write_safetensors
from tests.quant.mlx.test_coded_weights import (
    FLOAT4,
    bf16,
    float8,
    float8_codes,
    nibbles,
    packed_config,
    packed_words,
    spread,
)

Stored = dict[str, tuple[str, np.ndarray]]
Coder = Callable[[str, tuple[int, ...], np.random.Generator], tuple[Stored, np.ndarray]]
"""Name and shape of a weight → its tensors, and what they mean."""


def float8_in_blocks(name, shape, rng):
    codes = float8_codes(rng, shape)
    scales = rng.uniform(1e-4, 2e-4, [-(-size // 32) for size in shape]).astype(np.float32)
    stored = {name: ("F8_E4M3", codes), f"{name}_scale_inv": ("F32", scales)}
    return stored, bf16(float8(codes) * spread(scales, (32, 32), shape))


def float8_per_tensor(name, shape, rng):
    codes, scale = float8_codes(rng, shape), np.float32(2e-4)
    own = {name: ("F8_E4M3", codes), f"{name}_scale_inv": ("F32", np.array(scale))}
    own[name.replace("weight", "activation_scale")] = ("F32", np.array(np.float32(1)))
    return own, bf16(float8(codes) * scale)


def nvfp4_of_modelopt(name, shape, rng):
    packed = rng.integers(0, 256, (*shape[:-1], shape[-1] // 2)).astype(np.uint8)
    scales = float8_codes(rng, (*shape[:-1], shape[-1] // 16)) & 127
    own = np.array(np.float32(1e-4))
    stored = {name: ("U8", packed), f"{name}_scale": ("F8_E4M3", scales)}
    stored |= {f"{name}_scale_2": ("F32", own), name.replace("weight", "input_scale"): ("F32", own)}
    return stored, bf16(FLOAT4[nibbles(packed)] * (float8(scales) * own).repeat(16, -1))


def packed_int4(name, shape, rng):
    codes = rng.integers(0, 16, shape)
    scales = bf16(rng.uniform(0.01, 0.02, (shape[0], shape[1] // 32)))
    stored = {
        f"{name}_packed": ("I32", packed_words(codes, 4)),
        f"{name}_scale": ("BF16", (scales.view(np.uint32) >> 16).astype(np.uint16)),
        f"{name}_shape": ("I64", np.array(shape)),
    }
    return stored, bf16((codes - 8).astype(np.float32) * scales.repeat(32, 1))


def write(folder: Path, stored: Stored) -> None:
    header, data = {}, b""
    for name, (dtype, array) in stored.items():
        raw = np.ascontiguousarray(array).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    write_safetensors(folder / "model.safetensors", header, data)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)


def weights_in(folder: Path) -> dict[str, mx.array]:
    return mx.load(str(folder / "model.safetensors"))  # type: ignore[return-value]


def sixteen_bits(array: np.ndarray) -> tuple[str, np.ndarray]:
    return "BF16", (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def coded_copy(plain: Path, folder: Path, coder: Coder, config: dict, *, every: int = 1) -> Path:
    """A copy of a model, every so many of its projections coded, and `plain` with their meaning."""
    rng = np.random.default_rng(0)
    shutil.copytree(plain, folder)
    weights = weights_in(plain)
    coded: Stored = {}
    meant: Stored = {}
    num_coded = 0
    for name, array in sorted(weights.items()):
        is_coded = name.endswith("_proj.weight") and array.ndim == 2 and "router" not in name
        values = np.asarray(array.astype(mx.float32))
        num_coded += is_coded
        if is_coded and num_coded % every == 0:
            stored, values = coder(name, values.shape, rng)
            coded |= stored
        else:
            coded[name] = sixteen_bits(values)
        meant[name] = sixteen_bits(values)
    write(plain, meant)
    write(folder, coded)
    said = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(said))
    return folder


def require_same(found: Path, expected: Path) -> None:
    opened, plain = open_model(found), open_model(expected)
    weights, wanted = opened.lazy_weights(), plain.lazy_weights()
    assert set(weights) == set(wanted)
    for path, array in wanted.items():
        assert weights[path].dtype == array.dtype
        assert mx.array_equal(weights[path], array).item(), path
    assert opened.left_out == {}
    assert "quantization_config" not in opened.config


FP8 = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [32, 32]}}


@pytest.mark.parametrize(
    ("family", "coder", "config", "words"),
    [
        ("qwen3", float8_in_blocks, FP8, "float8 with a scale for each block of 32 × 32 weights"),
        ("ministral3", float8_per_tensor, FP8, "float8 with a scale for each tensor"),
        (
            "qwen3",
            nvfp4_of_modelopt,
            {"quantization_config": {"quant_method": "modelopt"}},
            "NVFP4",
        ),
        ("qwen3", nvfp4_of_modelopt, {}, "NVFP4"),
        ("qwen3", packed_int4, packed_config(4, 32), "int4 with a scale for each group of 32"),
    ],
)
@pytest.mark.parametrize("every", [1, 3])
def test_a_source_in_low_precision_is_its_dequantized_model(
    tmp_path, family, coder, config, words, every
):
    plain = save_model(tmp_path / "plain", family)
    folder = coded_copy(plain, tmp_path / "coded", coder, config, every=every)
    require_same(folder, plain)
    notes = MlxQuantizer(folder, name="lab/model").notes
    assert any(words in note for note in notes)


def test_settings_that_modelopt_writes_beside_the_config_do_not_count(tmp_path):
    plain = save_model(tmp_path / "plain")
    folder = coded_copy(plain, tmp_path / "coded", float8_per_tensor, {})
    settings = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(
        json.dumps({"quant_method": "modelopt"} | settings)
    )
    require_same(folder, plain)


def test_experts_that_are_coded_one_by_one_are_joined(tmp_path):
    plain = save_model(tmp_path / "plain", "qwen3_moe")
    weights = weights_in(plain)
    split: Stored = {}
    for name, array in weights.items():
        values = np.asarray(array.astype(mx.float32))
        if ".switch_mlp." in name:
            for expert, value in enumerate(values):
                split[name.replace("switch_mlp", f"experts.{expert}")] = sixteen_bits(value)
        else:
            split[name] = sixteen_bits(values)
    write(plain, split)
    folder = coded_copy(plain, tmp_path / "coded", float8_in_blocks, FP8)
    require_same(folder, plain)


def gpt_oss(tmp_path: Path) -> tuple[Path, Path]:
    """A model with MXFP4 experts as gpt-oss stores them, and the same dequantized."""
    plain = save_model(
        tmp_path / "plain", "gpt_oss", hidden_size=64, intermediate_size=64, num_local_experts=2
    )
    shutil.copytree(plain, tmp_path / "coded")
    weights = weights_in(plain)
    rng = np.random.default_rng(0)
    coded: Stored = {}
    meant: Stored = {}
    for name, array in weights.items():
        values = np.asarray(array.astype(mx.float32))
        base = name.removesuffix(".weight").replace("gate_proj", "gate_up_proj")
        if ".experts.up_proj." in name:
            continue
        if ".experts." in name and name.endswith(".bias"):
            joined = values.repeat(2, -1) if "gate" in name else values
            coded[base.removesuffix(".bias") + "_bias"] = sixteen_bits(joined)
            meant[name] = sixteen_bits(values)
            meant[name.replace("gate_proj", "up_proj")] = sixteen_bits(values)
        elif ".experts." in name:
            rows = values.shape[1] * (2 if "gate" in name else 1)
            blocks = rng.integers(0, 256, (2, rows, 2, 16)).astype(np.uint8)
            blocks[..., 0] = 0x71  # some code of each group is the largest
            scales = rng.integers(118, 122, (2, rows, 2)).astype(np.uint8)
            coded |= {f"{base}_blocks": ("U8", blocks), f"{base}_scales": ("U8", scales)}
            powers = 2.0 ** (scales.astype(np.float32) - 127)[..., None]
            number = (FLOAT4[nibbles(blocks)] * powers).reshape(2, rows, 64)
            step = 2 if "gate" in name else 1
            meant[name] = sixteen_bits(number[:, ::step])
            if step == 2:
                meant[name.replace("gate_proj", "up_proj")] = sixteen_bits(number[:, 1::2])
        else:
            coded[name] = meant[name] = sixteen_bits(values)
    write(plain, meant)
    write(tmp_path / "coded", coded)
    return tmp_path / "coded", plain


def test_mxfp4_experts_of_gpt_oss(tmp_path):
    folder, plain = gpt_oss(tmp_path)
    require_same(folder, plain)  # the config is silent
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": []}
    (folder / "config.json").write_text(json.dumps(config))
    require_same(folder, plain)
    assert any("MXFP4" in note for note in MlxQuantizer(folder, name="o/g").notes)


def quantized(source: Path, out: Path, formats: dict[str, QuantFormat]) -> dict[str, mx.array]:
    """Arrays of the folder that is written with these formats, by GPTQ with sweeps."""
    quantizer = MlxQuantizer(source, name="lab/model")
    profiles = quantizer.inventory(DEFAULT_MENU).layers
    plan = QuantPlan(
        formats={each.path: formats.get(each.path, UNQUANTIZED) for each in profiles},
        target_bpw=16.0,
        stored_bpw=16.0,
        predicted_kl_nats=float("nan"),
        lower_bound_nats=float("nan"),
    )
    out.mkdir()
    quantizer.encode(
        {out: plan},
        make_windows(np.random.default_rng(0).integers(0, 128, (12, 24))),
        encoder="gptq",
        effort=EFFORTS["normal"],
        importance={},
        on_step=lambda _step, _amount=1: None,
    )
    return weights_in(out)


def test_mxfp4_experts_keep_their_codes_and_scales_at_no_cost(tmp_path):
    folder, _ = gpt_oss(tmp_path)
    quantizer, mxfp4 = MlxQuantizer(folder, name="o/g"), QuantFormat(4, 32, "mxfp4")
    layers = {each.path: each for each in quantizer.inventory(DEFAULT_MENU).layers}
    experts = [path for path in layers if ".experts." in path]
    assert experts
    assert all(mxfp4 in layers[path].formats for path in experts)
    given = quantizer.inventory((QuantFormat(4, 64),)).layers
    assert all(mxfp4 not in layer.formats for layer in given)
    table = quantizer.measure(
        make_windows(np.random.default_rng(0).integers(0, 128, (12, 24))),
        menu=DEFAULT_MENU,
        encoder="gptq",
        effort=EFFORTS["fast"],
        seed=0,
        on_step=lambda _step, _amount=1: None,
    )
    costs = {each.path: each for each in table.inventory.layers}
    assert all(costs[path].cost_nats(mxfp4) == 0 for path in experts)
    written = quantized(folder, tmp_path / "out", dict.fromkeys(experts, mxfp4))
    stored = weights_in(folder)
    for path in experts:
        layer, name = path.rsplit(".", 1)
        base = path if name == "down_proj" else f"{layer}.gate_up_proj"
        start, step = int(name == "up_proj"), 1 if name == "down_proj" else 2
        blocks = stored[f"{base}_blocks"][:, start::step].reshape(2, -1, 32).view(mx.uint32)
        assert mx.array_equal(written[f"{path}.weight"], blocks).item()
        scales = stored[f"{base}_scales"][:, start::step]
        assert mx.array_equal(written[f"{path}.scales"], scales).item()


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("is_symmetric", [True, False])
def test_a_model_trained_for_four_bits_comes_out_bit_for_bit(tmp_path, size, is_symmetric):
    fmt = QuantFormat(4, size)

    def trained(name, shape, rng):
        groups = rng.standard_normal(shape).astype(np.float32).reshape(-1, size) / 8
        if is_symmetric:
            extremum = np.take_along_axis(groups, np.abs(groups).argmax(-1)[:, None], 1)
            scale = bf16(-extremum / 8)
            numbers = np.clip(np.rint(groups / scale), -8, 7) * scale
        else:
            low, high = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True)
            scale, bias = bf16((high - low) / 15), bf16(low)
            numbers = np.clip(np.rint((groups - bias) / scale), 0, 15) * scale + bias
        values = bf16(numbers).reshape(shape)
        return {name: sixteen_bits(values)}, values

    source = coded_copy(save_model(tmp_path / "plain"), tmp_path / "trained", trained, {})
    wanted = weights_in(source)
    paths = [name.removesuffix(".weight") for name in wanted if name.endswith("_proj.weight")]
    written = quantized(source, tmp_path / "out", dict.fromkeys(paths, fmt))
    for path in paths:
        names = ("weight", "scales", "biases")
        arrays = {name: written[f"{path}.{name}"] for name in names}
        found = decode(Encoded(arrays, fmt)).astype(mx.bfloat16)
        assert mx.array_equal(found, wanted[f"{path}.weight"]).item(), path


def test_a_quant_by_name_is_refused_unless_asked_for(tmp_path):
    plain = save_model(tmp_path / "plain")
    folder = coded_copy(plain, tmp_path / "coded", float8_in_blocks, FP8)
    with pytest.raises(QuantizedSourceError, match="'me/Model-FP8' is quantized already"):
        MlxQuantizer(folder, name="me/Model-FP8")
    assert MlxQuantizer(folder, name="me/Model-FP8", dequantize=True).num_blocks
    assert MlxQuantizer(folder, name="qwen/Model-FP8").num_blocks


def test_float8_without_scales_is_refused_before_anything_is_read(tmp_path):
    def bare(name, shape, rng):
        stored, meant = float8_in_blocks(name, shape, rng)
        return {name: stored[name]}, meant

    folder = coded_copy(save_model(tmp_path / "plain"), tmp_path / "coded", bare, FP8)
    with pytest.raises(UnsupportedModelError, match=r"no scale is beside it"):
        open_model(folder)
