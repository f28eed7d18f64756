"""The command line on a real model."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import pytest
from huggingface_hub import ModelCard
from mlx_lm.utils import compute_bits_per_weight, quantize_model, save_config, save_model

from dynquant import __version__
from dynquant.quant.formats import parse_menu
from dynquant.report.artefacts import cost_table_from_json
from local_hub import LocalHub
from tests.command_line import (
    CALIBRATION,
    HELD_OUT,
    MODEL,
    QUICK,
    SHARED,
    call,
    copy_model,
    ladder,
    needs_shared,
    quick_table,
    run,
    snapshot,
    weights_sha,
)

pytestmark = needs_shared

TARGETS = (3.0, 4.0, 5.0)


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """Three finished models and what the command printed."""
    return ladder(tmp_path_factory)


@pytest.fixture(scope="session")
def said(made) -> list[dict[str, Any]]:
    """The JSON of the three models."""
    printed = json.loads((made / "stdout").read_text())
    assert list(printed) == ["models"]
    return list(printed["models"])


def folders(said: list[dict[str, Any]]) -> list[Path]:
    return [Path(model["folder"]) for model in said]


@pytest.mark.slow
def test_quantizing_prints_one_json_object_and_writes_one_folder_per_target(made, said):
    assert (made / "stdout").read_text().count("\n") == 1
    names = [f"sample-2m-MLX-{target}bpw" for target in TARGETS]
    assert [folder.name for folder in folders(said)] == names
    assert sorted(path.name for path in (made / "out").iterdir()) == names
    for bar in ("Measuring", "Encoding", "Running in stock MLX", "Evaluating"):
        assert bar in (made / "stderr").read_text()


@pytest.mark.slow
def test_every_model_stores_at_most_its_target_and_hardly_less(said):
    for model, target in zip(said, TARGETS, strict=True):
        assert model["target_bpw"] == target
        assert target - 0.01 < model["stored_bpw"] <= target


@pytest.mark.slow
def test_quality_grows_with_size(said):
    kl = [model["mean_kl_nats"] for model in said]
    assert kl[0] > kl[1] > kl[2] > 0
    assert said[0]["top1_agreement"] < said[2]["top1_agreement"] <= 1
    for model in said:
        original, uniform, mine = model["report"]["rows"]
        assert original["mean_kl_nats"] == 0
        assert original["perplexity"] > 1
        assert mine["mean_kl_nats"] == model["mean_kl_nats"] < uniform["mean_kl_nats"]
        assert abs(uniform["stored_bpw"] - model["stored_bpw"]) < 0.5


@pytest.mark.slow
def test_stock_mlx_lm_loads_every_model_counts_its_bits_and_generates(said):
    for model in said:
        loaded, tokenizer, *_ = mlx_lm.load(model["folder"])
        assert compute_bits_per_weight(loaded) == pytest.approx(model["stored_bpw"], abs=1e-9)
        assert mlx_lm.generate(loaded, tokenizer, prompt="The", max_tokens=8)
        assert model["sample"].startswith("The")


@pytest.mark.slow
def test_the_config_has_integer_bits_at_its_top_and_the_format_of_every_layer(said):
    for folder, model in zip(folders(said), said, strict=True):
        config = json.loads((folder / "config.json").read_text())
        assert config["quantization"] == config["quantization_config"]
        top = config["quantization"]
        assert type(top["bits"]) is int
        assert type(top["group_size"]) is int
        assert top["mode"] == "affine"
        for path, name in model["formats"].items():
            own = top.get(path, {"bits": top["bits"], "group_size": top["group_size"]})
            expected = f"{own['bits']}g{own['group_size']}" if own else "unquantized"
            assert name == expected


@pytest.mark.slow
def test_every_model_has_a_card_whose_header_the_hub_can_read(said):
    for folder, model in zip(folders(said), said, strict=True):
        card = ModelCard.load(folder / "README.md")
        data = card.data.to_dict()
        assert data["library_name"] == "mlx"
        assert data["pipeline_tag"] == "text-generation"
        # The index of the Hub takes the perplexity from here.
        (result,) = data["model-index"][0]["results"]
        assert result["metrics"][0]["value"] == pytest.approx(model["perplexity"], rel=1e-3)
        assert f"{model['stored_bpw']:.3f}" in card.text
        for picture in ("dynquant/bits-light.svg", "dynquant/bits-dark.svg"):
            assert picture in card.text
            assert (folder / picture).read_text().startswith("<svg")


@pytest.mark.slow
def test_the_artefacts_say_what_the_json_said(said):
    for folder, model in zip(folders(said), said, strict=True):
        artefacts = folder / "dynquant"
        assert json.loads((artefacts / "report.json").read_text()) == model["report"]
        plan = json.loads((artefacts / "plan.json").read_text())
        assert plan["formats"] == model["formats"]
        assert plan["stored_bpw"] == model["stored_bpw"] == model["report"]["stored_bpw"]
        assert plan["predicted_kl_nats"] >= plan["lower_bound_nats"] > 0
        table = cost_table_from_json((artefacts / "cost_table.json").read_text(), name="it")
        assert [layer.path for layer in table.inventory.layers] == list(model["formats"])
        assert table.method == "fisher"
        weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        assert 0 <= weights - model["report"]["rows"][-1]["num_bytes"] < 20_000  # its header


@pytest.mark.slow
def test_no_path_of_this_machine_is_in_what_gets_published(made, said):
    paths = [str(made), made.parent.name, str(SHARED), str(Path.home()) + "/", sys.prefix, "/tmp/"]
    for folder in folders(said):
        for file in sorted(folder.rglob("*")):
            if not file.is_file() or file.suffix == ".safetensors" or file.name == "tokenizer.json":
                continue
            text = file.read_text(encoding="utf-8")
            found = [path for path in paths if path in text]
            assert not found, f"{file.name} names {found}"
    command = json.loads((folders(said)[0] / "dynquant" / "plan.json").read_text())["command"]
    assert command == (
        "dynquant quantize sample-2m --bpw 3,4,5 --out quants --calibration calibration.txt "
        "--eval heldout.txt --effort fast --calibration-tokens 512 --eval-tokens 512"
    )


@pytest.mark.slow
def test_evaluating_a_folder_gives_the_figures_of_its_report(said, tmp_path):
    model = said[1]
    words = ("evaluate", model["folder"], f"--reference={MODEL}", "--eval-tokens=512")
    found = call(*words, f"--eval={HELD_OUT}", "--json").check().json
    rows = model["report"]["rows"]
    for name, row in (("original", rows[0]), ("quantized", rows[-1])):
        for key, value in found[name].items():
            assert value == pytest.approx(row[key], rel=1e-3, abs=1e-6), (name, key)
    printed = call(*words, f"--eval={HELD_OUT}").check()
    assert "Original" in printed.out
    assert "sample-2m-MLX-4.0bpw" in printed.out
    refused = call(*words, f"--eval={CALIBRATION}", "--json")
    assert refused.code == 2
    assert refused.out == ""
    assert "calibrated on text that 'calibration.txt' holds" in refused.err
    under_another_name, of_that_name = tmp_path / "unseen.txt", tmp_path / "calibration.txt"
    shutil.copyfile(CALIBRATION, under_another_name)
    shutil.copyfile(HELD_OUT, of_that_name)
    refused = call(*words, f"--eval={under_another_name}")
    assert "calibrated on text that 'unseen.txt' holds" in refused.err
    call(*words, f"--eval={of_that_name}").check()


def test_measuring_once_serves_several_quantizations(tmp_path, tmp_path_factory):
    table = quick_table(tmp_path_factory)
    use = f"--cost-table={table}"
    finished = call("quantize", MODEL, "--bpw=4", f"--out={tmp_path}", "--json", use, *QUICK)
    assert "Measuring" not in finished.check().err
    assert "Probing" not in finished.err
    (model,) = finished.json["models"]
    written = Path(model["folder"]) / "dynquant" / "cost_table.json"
    assert written.read_text() == table.read_text()
    again = call("quantize", MODEL, "--bpw=4,6", f"--out={tmp_path}", use, *QUICK).check()
    assert "sample-2m-MLX-6.0bpw" in again.out  # the table for people
    assert "Perplexity" in again.out or "perplexity" in again.out
    names = ["sample-2m-MLX-4.0bpw", "sample-2m-MLX-6.0bpw"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_measuring_says_where_the_table_is(tmp_path, tmp_path_factory):
    table = json.loads(quick_table(tmp_path_factory).read_text())
    assert {name for layer in table["layers"] for name in layer["costs_nats"]} == {
        "3g64", "4g64", "8g64",
    }  # fmt: skip
    assert table["calibration"]["name"] == "calibration.txt"
    assert str(SHARED) not in json.dumps(table)


def test_the_alignment_method_writes_its_sensitivities_and_reads_them_again(tmp_path):
    path = tmp_path / "new" / "sensitivities.json"
    options = [word for word in QUICK if not word.startswith("--formats")]
    words = ("quantize", MODEL, "--bpw=5", "--method=alignment", f"--sensitivities={path}")
    more = (f"--out={tmp_path / 'out'}", "--low=4g64", "--high=6g64", "--json", *options)
    first = call(*words, *more).check()
    assert "Measuring sensitivities" in first.err
    pairs = json.loads(path.read_text())
    assert all(isinstance(name, str) and math.isfinite(value) for name, value in pairs)
    (model,) = first.json["models"]
    assert set(model["formats"].values()) == {"4g64", "6g64"}
    assert sorted(model["formats"]) == sorted(name for name, _ in pairs)
    assert model["stored_bpw"] <= 5
    assert not (Path(model["folder"]) / "dynquant" / "cost_table.json").exists()
    before, weights = path.read_text(), weights_sha(Path(model["folder"]))

    second = call(*words, *more).check()
    assert "Measuring sensitivities" not in second.err
    assert path.read_text() == before
    assert second.json["models"][0]["formats"] == model["formats"]
    assert weights_sha(Path(model["folder"])) == weights


@pytest.mark.parametrize(
    ("formats", "encoder", "bpw"),
    [
        ("3g64,4g32,unquantized", "wls", 5.0),
        ("mxfp4,nvfp4,mxfp8", "gptq", 4.6),
        ("unquantized", "minmax", 16.0),
    ],
)
def test_the_menu_and_the_encoder_are_those_that_were_asked_for(formats, encoder, bpw, tmp_path):
    options = (*QUICK, f"--formats={formats}", f"--encoder={encoder}", "--json")
    finished = call("quantize", MODEL, f"--bpw={bpw}", f"--out={tmp_path / 'out'}", *options)
    (model,) = finished.check().json["models"]
    assert set(model["formats"].values()) <= {fmt.name for fmt in parse_menu(formats)}
    assert model["stored_bpw"] <= bpw
    plan = json.loads((Path(model["folder"]) / "dynquant" / "plan.json").read_text())
    assert plan["encoder"] == encoder
    if formats == "unquantized":
        assert model["mean_kl_nats"] == pytest.approx(0, abs=1e-6)
        assert "quantization" not in json.loads((Path(model["folder"]) / "config.json").read_text())


@pytest.fixture
def quantized(tmp_path) -> Path:
    """MODEL in 8 bits, as `mlx_lm.convert` writes it."""
    folder = copy_model(tmp_path / "sample-8bit")
    for name in ("model-00001-of-00001.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink()
    model, config = mlx_lm.utils.load_model(MODEL)
    model, config = quantize_model(model, config, group_size=64, bits=8)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return folder


def test_a_quantized_source_is_refused_and_taken_with_dequantize(quantized, tmp_path):
    before = snapshot(quantized)
    words = ("quantize", quantized, "--bpw=4", f"--out={tmp_path / 'out'}", "--json", *QUICK)
    refused = call(*words)
    assert refused.code == 2
    assert "quantized already" in refused.err
    assert "--dequantize" in refused.err
    assert not (tmp_path / "out").exists()
    (model,) = call(*words, "--dequantize").check().json["models"]
    assert 3.99 < model["stored_bpw"] <= 4
    loaded, _, *_ = mlx_lm.load(model["folder"])
    assert compute_bits_per_weight(loaded) == pytest.approx(model["stored_bpw"])
    plan = call("plan", quantized, "--bpw=4", "--dequantize", "--json").check().json["plans"][0]
    assert plan["max_bpw"] == 16
    assert snapshot(quantized) == before


def test_planning_prints_sizes_for_people_and_for_scripts():
    (plan,) = call("plan", MODEL, "--bpw=4.5", "--json").check().json["plans"]
    assert plan["num_parameters"] == 2_546_368
    assert plan["source_bytes"] == 2 * 2_546_368
    assert plan["size_bytes"] == 4.5 * 2_546_368 / 8
    assert plan["min_bpw"] < 3
    assert plan["max_bpw"] == 16
    printed = call("plan", MODEL, "--bpw=3,4.5").check()
    assert "2,546,368 parameters" in printed.out
    assert "1.43 MB" in printed.out


def test_planning_without_a_size_offers_the_usual_ones_and_recommends_one():
    found = call("plan", MODEL, "--on=m4 pro", "--json").check().json
    assert [plan["target_bpw"] for plan in found["plans"]] == [3, 3.5, 4, 4.5, 5, 6, 7, 8]
    assert (found["chip"], found["recommended_bpw"]) == ("M4 Pro", 6)
    speeds = [plan["tokens_per_sec"] for plan in found["plans"]]
    assert speeds == sorted(speeds, reverse=True)
    printed = call("plan", MODEL, "--on=M4 Pro").check().out
    assert "tokens/s, M4 Pro" in printed
    assert "--bpw 6, hardly distinguishable" in printed
    assert "Converting takes up to" in printed


def test_a_chip_that_is_not_known_is_refused_before_the_model_is_opened():
    refused = call("plan", "no/such-model", "--on=M44")
    assert refused.code == 2
    assert "No chip is called 'M44'" in refused.err
    assert "'M4'" in refused.err


def test_planning_finds_the_size_for_a_memory_a_context_and_a_speed(tmp_path):
    model = huge_model(tmp_path / "huge")
    words = ("plan", model, "--fit=64GB", "--context=16384", "--on=M4 Max", "--json")
    (by_memory,) = call(*words).check().json["plans"]
    (fast,) = call(*words, "--min-tokens-per-second=12", "--kv-bits=8").check().json["plans"]
    assert fast["target_bpw"] < by_memory["target_bpw"]
    assert 12 <= fast["full_tokens_per_sec"] < 12.1
    refused = call(*words, "--min-tokens-per-second=100")
    assert refused.code == 2
    assert "its smallest" in refused.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--bpw=4", "--fit=16GB"], "--bpw asks for a size"),
        (["--kv-bits=5"], "must be 16, 8 or 4"),
        (["--on=M1", "--min-tokens-per-second=0"], "positive number"),
        (["--on=M1", "--context=1000000"], "longer than this model's context of"),
    ],
)
def test_bounds_that_cannot_be_met_are_refused_in_words(words, said):
    refused = call("plan", MODEL, *words)
    assert refused.code == 2
    assert said in refused.err


def huge_model(folder: Path) -> Path:
    """A model of 70 billion parameters whose weights are a hole: 140 GB to read, no byte stored."""
    folder.mkdir()
    hidden, wide, heads, kv_heads, head, vocab, blocks = 8192, 28672, 64, 8, 128, 128_000, 80
    config = {
        "model_type": "qwen3", "hidden_size": hidden, "intermediate_size": wide,
        "num_hidden_layers": blocks, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head, "vocab_size": vocab,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768,
        "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    block = {
        "self_attn.q_proj": (heads * head, hidden),
        "self_attn.k_proj": (kv_heads * head, hidden),
        "self_attn.v_proj": (kv_heads * head, hidden),
        "self_attn.o_proj": (hidden, heads * head),
        "self_attn.q_norm": (head,),
        "self_attn.k_norm": (head,),
        "mlp.gate_proj": (wide, hidden),
        "mlp.up_proj": (wide, hidden),
        "mlp.down_proj": (hidden, wide),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (vocab, hidden),
        "lm_head": (vocab, hidden),
        "model.norm": (hidden,),
    }
    for i in range(blocks):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in block.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[f"{name}.weight"] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    encoded = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + end)
    return folder


def test_planning_reads_no_weights(tmp_path):
    model = huge_model(tmp_path / "huge")
    assert (model / "model.safetensors").stat().st_blocks * 512 < 10**6
    memory = 8 * 2**30  # reading the weights would take 140 GB

    finished = run(
        "plan", model, "--bpw=3.0,4.5", "--json",
        preexec=lambda: resource.setrlimit(resource.RLIMIT_DATA, (memory, memory)),
    ).check()  # fmt: skip
    low, high = finished.json["plans"]
    assert 70e9 < low["num_parameters"] < 72e9
    assert low["size_bytes"] < high["size_bytes"] < 45e9
    cache_bytes = 2 * 80 * 8 * 128 * 4096 * 2  # keys and values, blocks, heads, width, context
    assert high["memory_bytes"] == pytest.approx(1.05 * (high["size_bytes"] + cache_bytes), rel=0.1)
    assert high["conversion_memory_bytes"] < high["source_bytes"] / 2

    (fitted,) = call("plan", model, "--fit=64GB", "--context=8192", "--json").check().json["plans"]
    assert fitted["context_tokens"] == 8192
    assert low["target_bpw"] < fitted["target_bpw"] < 8
    assert fitted["memory_bytes"] <= 0.75 * 64 * 2**30
    refused = call("plan", model, "--fit=8GB", "--json")
    assert refused.code == 2
    assert "does not fit" in refused.err


@pytest.mark.hub
def test_planning_a_repo_of_the_hub_downloads_no_weights(tmp_path):
    with LocalHub() as hub:
        hub.add("org/sample", MODEL)
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        finished = run("plan", "org/sample", "--bpw=4.5", "--json", env=env).check()
        sent = sum(request.num_bytes for request in hub.asked(r"GET .*safetensors$"))
    (plan,) = finished.json["plans"]
    assert plan["model"] == "org/sample"
    assert plan["num_parameters"] == 2_546_368
    assert 0 < sent < 500_000


@pytest.mark.hub
def test_a_repo_of_the_hub_is_quantized_and_named_on_the_card(tmp_path):
    with LocalHub() as hub:
        repo = hub.add("org/sample", MODEL)
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        words = ("quantize", "org/sample", "--bpw=4", f"--out={tmp_path / 'out'}", "--json")
        (model,) = run(*words, *QUICK, env=env).check().json["models"]
    folder = Path(model["folder"])
    assert folder.name == "sample-MLX-4.0bpw"
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert data["base_model"] == "org/sample"
    plan = json.loads((folder / "dynquant" / "plan.json").read_text())
    assert plan["source"] == "org/sample"
    assert plan["revision_sha"] == repo.branches["main"]
    assert "org/sample" in plan["command"]


def test_the_version_and_the_help_are_printed():
    assert call("--version").check().out.strip() == __version__
    shown = call("--help").check().out
    for command in ("plan", "measure", "quantize", "evaluate", "convert", "submit"):
        assert command in shown


@pytest.mark.parametrize(("dtype", "target"), [("float32", 5.5), ("auto", 5.0)])
def test_a_float32_model_is_stored_in_sixteen_bits_unless_asked_otherwise(tmp_path, dtype, target):
    """Scales and biases take the weight's dtype, so in float32 they take one bit more."""
    folder = copy_model(tmp_path / "wide")
    config = json.loads((folder / "config.json").read_text()) | {"torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    shard = folder / "model-00001-of-00001.safetensors"
    weights = mx.load(str(shard))
    assert isinstance(weights, dict)
    wide = {name: array.astype(mx.float32) for name, array in weights.items()}
    mx.eval(list(wide.values()))
    mx.save_safetensors(str(shard), wide, metadata={"format": "mlx"})
    words = (f"--out={tmp_path / 'out'}", "--json", f"--dtype={dtype}", *QUICK)
    (model,) = call("quantize", folder, f"--bpw={target}", *words).check().json["models"]
    assert target - 0.05 < model["stored_bpw"] <= target
    stored = {"float32": "float32", "auto": "bfloat16"}[dtype]
    assert model["report"]["rows"][0]["label"] == f"Original ({stored})"
    (out,) = (tmp_path / "out").iterdir()
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == stored
    assert ("is in float32" in (out / "README.md").read_text()) == (dtype == "auto")
