"""Requests that cannot work are refused: a clear line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from local_hub import LocalHub
from tests.command_line import (
    CALIBRATION,
    HELD_OUT,
    MODEL,
    QUICK,
    Finished,
    call,
    copy_model,
    edit_config,
    environment,
    needs_shared,
    quick_table,
    run,
    snapshot,
)
from tests.waiting import wait_until

pytestmark = [needs_shared, pytest.mark.harden("newcomers")]

WEIGHTS = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
RANGE = "3.514 to 8.508"  # of MODEL and the formats of QUICK


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "new" / "out"


@pytest.fixture
def model(tmp_path) -> Path:
    return copy_model(tmp_path / "sample")


def quantize(model: Path | str, out: Path, *more: str | Path, bpw: str = "4.0") -> Finished:
    return call("quantize", model, f"--bpw={bpw}", f"--out={out}", "--json", *QUICK, *more)


def assert_refused(finished: Finished, *says: str, code: int = 2) -> None:
    assert finished.code == code, finished
    assert finished.out == ""
    lines = finished.err.splitlines()
    assert len(lines) == 1, finished.err
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith(".")
    assert "Traceback" not in finished.err
    assert len(lines[0]) < 600
    for each in says:
        assert each in lines[0]


def assert_nothing_written(out: Path) -> None:
    assert not out.exists()
    assert not out.parent.exists()


def edit_weights(folder: Path, change: Callable[[dict[str, mx.array]], None]) -> None:
    loaded = mx.load(str(folder / WEIGHTS))
    assert isinstance(loaded, dict)
    weights = dict(loaded)
    change(weights)
    mx.eval(list(weights.values()))
    (folder / INDEX).unlink()
    mx.save_safetensors(str(folder / WEIGHTS), weights, metadata={"format": "mlx"})


def set_tensor(weights: dict[str, mx.array], name: str, array: mx.array | None) -> None:
    if array is None:
        del weights[name]
    else:
        weights[name] = array


def truncate(folder: Path, num_bytes: int) -> None:
    with (folder / WEIGHTS).open("r+b") as stream:
        stream.truncate(num_bytes)


def only_pickled(folder: Path, name: str) -> None:
    (folder / WEIGHTS).rename(folder / name)
    (folder / INDEX).unlink()


def edit_index(folder: Path, shard: str, tensor: str = "model.norm.weight") -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][tensor] = shard
    (folder / INDEX).write_text(json.dumps(index))


def write(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()


Damage = Callable[[Path], Any]
BAD_MODELS: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no config": (lambda f: remove(f, "config.json"), ("has no config.json",)),
    "config is no json": (lambda f: write(f, "config.json", b"{"), ("not valid JSON",)),
    "config is binary": (lambda f: write(f, "config.json", b"\xff\xfe\0"), ("not valid JSON",)),
    "config is a list": (lambda f: write(f, "config.json", b"[]"), ("model_type",)),
    "no model_type": (partial(edit_config, model_type=None), ("model_type",)),
    "model_type is a number": (partial(edit_config, model_type=5), ("model_type",)),
    "unknown architecture": (
        partial(edit_config, model_type="gpt99"),
        ("no architecture for model_type 'gpt99'",),
    ),
    "architecture is a path": (partial(edit_config, model_type="../../x"), ("model_type",)),
    "own code": (partial(edit_config, model_file="model.py"), ("never runs code",)),
    "only .bin": (lambda f: only_pickled(f, "pytorch_model.bin"), ("PyTorch weights", ".bin")),
    "only .pt": (lambda f: only_pickled(f, "model.pt"), ("PyTorch weights", "safetensors")),
    "no weights": (lambda f: remove(f, WEIGHTS), ("no weights",)),
    "truncated data": (lambda f: truncate(f, 4_000_000), ("truncated or corrupt", WEIGHTS)),
    "truncated header": (lambda f: truncate(f, 100), ("truncated or corrupt", WEIGHTS)),
    "empty file": (lambda f: truncate(f, 0), ("truncated or corrupt", WEIGHTS)),
    "no safetensors": (lambda f: write(f, WEIGHTS, b"x" * 999), ("truncated or corrupt",)),
    "header is no json": (
        lambda f: write(f, WEIGHTS, (8).to_bytes(8, "little") + b"notjson!"),
        ("header is not JSON",),
    ),
    "index is no json": (lambda f: write(f, INDEX, b"{}"), ("not a valid index",)),
    "shard missing": (
        lambda f: edit_index(f, "model-00002-of-00002.safetensors", "model.other.weight"),
        ("weight file(s) that are not here", "model-00002-of-00002.safetensors"),
    ),
    "tensor not where the index says": (
        lambda f: edit_index(f, WEIGHTS, "model.other.weight"),
        ("'model.other.weight'", "no file has it"),
    ),
    "tensor missing": (
        lambda f: edit_weights(f, lambda w: set_tensor(w, "model.norm.weight", None)),
        ("do not fit together", "model.norm.weight"),
    ),
    "tensor too many": (
        lambda f: edit_weights(f, lambda w: set_tensor(w, "model.extra.weight", mx.zeros(3))),
        ("do not fit together", "model.extra.weight"),
    ),
    "tensor of another shape": (
        lambda f: edit_weights(f, lambda w: set_tensor(w, "model.norm.weight", mx.zeros(7))),
        ("do not fit together", "model.norm.weight"),
    ),
    "config of another size": (
        partial(edit_config, intermediate_size=640),
        ("do not fit together", "640"),
    ),
    "config without a size": (partial(edit_config, hidden_size=None), ("do not fit together",)),
    "a size that is a text": (partial(edit_config, hidden_size="x"), ("do not fit together",)),
    "a context that is a text": (
        partial(edit_config, max_position_embeddings="long"),
        ("max_position_embeddings",),
    ),
    "a context below zero": (
        partial(edit_config, max_position_embeddings=-5),
        ("max_position_embeddings",),
    ),
    "no tokenizer": (
        lambda f: list(map(Path.unlink, f.glob("tokenizer*"))),
        ("tokenizer",),
    ),
    "damaged tokenizer": (lambda f: write(f, "tokenizer.json", b"{}"), ("tokenizer",)),
    "quantized already": (
        partial(edit_config, quantization={"bits": 4, "group_size": 64}),
        ("quantized already", "--dequantize"),
    ),
}


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_model_that_cannot_be_taken_is_refused(name, model, out):
    damage, says = BAD_MODELS[name]
    damage(model)
    assert_refused(quantize(model, out), *says)
    assert_nothing_written(out)


@pytest.mark.parametrize("name", sorted(set(BAD_MODELS) - {"no tokenizer", "damaged tokenizer"}))
def test_planning_refuses_the_same_models(name, model):
    damage, says = BAD_MODELS[name]
    if "max_position" in says[0]:
        return  # texts are cut into windows only when something is measured
    damage(model)
    assert_refused(call("plan", model, "--bpw=4.0", "--json"), *says)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no/such/folder", "There is no folder 'no/such/folder'"),
        ("./nothing", "There is no folder './nothing'"),
        ("", "There is no folder ''"),
        (str(CALIBRATION), "is a file"),
    ],
)
def test_a_folder_that_is_not_there_is_refused(name, says, out):
    assert_refused(quantize(name, out), says)
    assert_nothing_written(out)


@pytest.mark.hub
def test_a_repo_that_is_not_on_the_hub_is_refused(tmp_path, out):
    with LocalHub() as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        finished = run("quantize", "nobody/nothing", "--bpw=4", f"--out={out}", *QUICK, env=env)
        hub.add("some/gguf", {"config.json": b"{}", "model.gguf": b"GGUF"})
        other = run("plan", "some/gguf", "--bpw=4", "--json", env=env)
    assert_refused(finished, "nobody/nothing")
    assert_nothing_written(out)
    assert_refused(other, "GGUF")


@pytest.mark.parametrize(
    ("bpw", "says"),
    [
        ("abc", "--bpw must be numbers"),
        ("", "--bpw must be numbers"),
        ("4,", "--bpw must be numbers"),
        ("4;5", "--bpw must be numbers"),
        ("4_5", "--bpw must be numbers"),
        ("nan", "positive number"),
        ("inf", "positive number"),
        ("0", "positive number"),
        ("-3", "positive number"),
        ("3.5", f"below the feasible range of this model and these formats, {RANGE} BPW"),
        ("9", f"above the feasible range of this model and these formats, {RANGE} BPW"),
        ("4,17", f"above the feasible range of this model and these formats, {RANGE} BPW"),
        ("4,4.0", "Two of the targets are the same"),
    ],
)
def test_a_target_that_cannot_be_met_is_refused_with_the_range(bpw, says, out):
    assert_refused(quantize(MODEL, out, bpw=bpw), says)
    assert_nothing_written(out)


def test_both_ends_of_the_range_that_is_named_are_feasible():
    low, high = RANGE.split(" to ")
    finished = call("plan", MODEL, f"--bpw={low},{high}", QUICK[0], "--json").check()
    assert [plan["target_bpw"] for plan in finished.json["plans"]] == [float(low), float(high)]


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--formats=7g64", "There is no format '7g64'"),
        ("--formats=4g48", "There is no format '4g48'"),
        ("--formats=", "--formats is empty"),
        ("--encoder=best", "There is no encoder 'best'"),
        ("--method=magic", "There is no method 'magic'"),
        ("--low=3g64", "--low cannot be used with --method fisher, only with --method alignment"),
        ("--tolerance=0.1", "--tolerance cannot be used with --method fisher"),
        ("--sensitivities=s.json", "--sensitivities cannot be used with --method fisher"),
        ("--effort=best", "There is no effort 'best'"),
        ("--cost-table=nothing.json", "no file 'nothing.json'"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(option, says, out):
    assert_refused(quantize(MODEL, out, option), says)
    assert_nothing_written(out)


def aligned(out: Path, *more: str | Path, bpw: str = "4.8") -> Finished:
    options = [word for word in QUICK if not word.startswith("--formats")]
    return call(
        "quantize", MODEL, f"--bpw={bpw}", f"--out={out}", "--method=alignment", *options, *more
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--formats=4g64",), "--formats cannot be used with --method alignment"),
        (("--cost-table=t.json",), "--cost-table cannot be used with --method alignment"),
        (("--low=1g64",), "There is no format '1g64'"),
        (("--tolerance=1.5",), "tolerance must lie between 0 and 1"),
        (("--tolerance=nan",), "tolerance must lie between 0 and 1"),
        (("--low=8g64", "--high=4g64"), "smaller than"),
        (("--low=2g64", "--high=3g64"), "feasible range"),
    ],
)
def test_options_of_the_alignment_method_are_checked_before_measuring(options, says, out, tmp_path):
    new = tmp_path / "sensitivities.json"
    assert_refused(aligned(out, *options, f"--sensitivities={new}"), says)
    assert_nothing_written(out)
    assert not new.exists()


def good_sensitivities() -> list[list[Any]]:
    index = json.loads((MODEL / INDEX).read_text())
    names = [name.removesuffix(".weight") for name in index["weight_map"]]
    return [[name, i] for i, name in enumerate(sorted(names)) if "norm" not in name]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a sensitivities file"),
        (b"\xff\xfe", "cannot be read as text"),
        (b'{"a": 1}', "not a sensitivities file"),
        (b'[["model.layers.0.self_attn.q_proj", NaN]]', "no finite sensitivity"),
        (b'[["model.layers.99.self_attn.q_proj", 1.0]]', "of another model"),
        (json.dumps(good_sensitivities()[1:]).encode() if MODEL.is_dir() else b"", "Measure again"),
    ],
)
def test_a_sensitivities_file_that_does_not_fit_is_refused(content, says, out, tmp_path):
    path = tmp_path / "sensitivities.json"
    path.write_bytes(content)
    assert_refused(aligned(out, f"--sensitivities={path}"), says)
    assert_nothing_written(out)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", b"", "There is no text in 'empty.txt'"),
        ("blank.txt", b" \n\n ", "There is no text in 'blank.txt'"),
        ("short.txt", b"Once upon a time.", "at least 2,560 are needed"),
        ("latin.txt", b"caf\xe9 " * 99, "is not UTF-8"),
        ("binary.txt", b"\0\xff\x80" * 99, "is not UTF-8"),
        ("rows.jsonl", b'{"text": 1}\n', "rows.jsonl"),
        ("rows.jsonl", b"no json\n", "not a JSON object"),
        ("rows.jsonl", b'{"other": "x"}\n', "'messages'"),
        ("rows.parquet", b"no parquet", "rows.parquet"),
        ("missing.txt", None, "There is no file"),
        ("folder", None, "is a folder"),
    ],
)
@pytest.mark.parametrize("option", ["--calibration", "--eval"])
def test_a_text_that_cannot_be_used_is_refused(option, name, content, says, tmp_path):
    path, out = tmp_path / name, tmp_path / "new" / "out"
    if content is not None:
        path.write_bytes(content)
    elif name == "folder":
        path.mkdir()
    if option == "--eval":
        says = says.replace("2,560", "512")
    assert_refused(quantize(MODEL, out, f"{option}={path}"), says)
    assert_nothing_written(out)


def test_evaluating_on_the_calibration_text_is_refused(out, tmp_path):
    assert_refused(quantize(MODEL, out, f"--eval={CALIBRATION}"), "is the one to calibrate on")
    under_another_name = tmp_path / "unseen.txt"
    shutil.copyfile(CALIBRATION, under_another_name)
    assert_refused(quantize(MODEL, out, f"--eval={under_another_name}"), "unseen.txt")
    assert_nothing_written(out)


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    return quick_table(tmp_path_factory)


def test_a_cost_table_that_is_none_is_refused(table, out, tmp_path):
    bad = tmp_path / "bad.json"
    for content in ("", "[]", "\0", table.read_text()[:1000]):
        bad.write_text(content)
        assert_refused(quantize(MODEL, out, f"--cost-table={bad}"), "'bad.json' is not a cost")
    assert_nothing_written(out)


def test_a_cost_table_of_another_model_or_text_or_encoder_is_refused(table, model, out, tmp_path):
    use = f"--cost-table={table}"
    other = tmp_path / "other.txt"
    shutil.copyfile(CALIBRATION, other)
    other.write_text(other.read_text() + "One more line.\n" + "word " * 20_000)
    texts = (f"--calibration={HELD_OUT}", f"--eval={other}")
    finished = quantize(MODEL, out, use, *texts)
    assert finished.code == 2
    assert "another calibration text ('calibration" in finished.err
    assert_refused(quantize(MODEL, out, use, "--calibration-tokens=900"), "2,560 tokens")
    assert_refused(quantize(MODEL, out, use, "--encoder=wls"), "--encoder minmax")
    assert_refused(quantize(MODEL, out, use, "--formats=3g64,5g64"), "no cost of '5g64'")
    edit_weights(model, lambda w: set_tensor(w, "model.norm.weight", w["model.norm.weight"] * 2))
    assert_refused(quantize(model, out, use), "another model ('sample-2m')")
    assert_nothing_written(out)


def test_a_cost_table_with_damaged_importance_is_refused(table, out, tmp_path):
    content = json.loads(table.read_text())
    assert content["importance"]
    bad = tmp_path / "bad.json"
    for damage in ([["not base64!", "x"]], [["AAA=", "AAA="]], [["AAAA", "AAAA"]]):
        content["importance"] = dict.fromkeys(content["importance"], damage)
        bad.write_text(json.dumps(content | {"encoder": "wls"}))
        finished = quantize(MODEL, out, f"--cost-table={bad}", "--encoder=wls", bpw="6")
        assert finished.code == 2, finished.err
        assert "Measure again" in finished.err
    assert_nothing_written(out)


def test_an_output_folder_that_is_not_ours_is_refused_and_left_alone(tmp_path):
    out = tmp_path / "out"
    out.write_text("mine")
    assert_refused(quantize(MODEL, out), "is a file")
    assert_refused(quantize(MODEL, out / "deeper"), "is a file")
    assert out.read_text() == "mine"
    folder = copy_model(tmp_path / "folder")
    before = snapshot(folder)
    assert_refused(quantize(MODEL, folder), "'config.json', which dynquant did not make")
    assert snapshot(folder) == before
    holder = tmp_path / "holder"
    copy_model(holder / "sample-2m-MLX-4.0bpw")
    before = snapshot(holder)
    assert_refused(quantize(MODEL, holder), "dynquant did not make")
    assert snapshot(holder) == before


def test_measuring_does_not_write_over_what_is_no_cost_table(tmp_path):
    options = [word for word in QUICK if not word.startswith("--eval")]
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    assert_refused(call("measure", MODEL, f"--out={notes}", *options), "is no cost table")
    assert notes.read_text() == "mine"
    assert_refused(call("measure", MODEL, f"--out={tmp_path}", *options), "is a folder")
    assert_refused(call("measure", MODEL, f"--out={notes}/t.json", *options), "is a file")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("plan", MODEL, "--bpw=4", "--fit=16GB"), "--bpw asks for a size"),
        (("plan", MODEL, "--fit=lots"), "not a memory size"),
        (("plan", MODEL, "--fit=1MB"), "does not fit"),
        (("plan", MODEL, "--bpw=1"), "feasible range"),
        (("evaluate", "nothing", f"--reference={MODEL}", f"--eval={HELD_OUT}"), "no model folder"),
        (("evaluate", MODEL, "--reference=./nothing", f"--eval={HELD_OUT}"), "no folder"),
        (("evaluate", MODEL, f"--reference={MODEL}", "--eval=./nothing"), "There is no file"),
    ],
)
def test_other_commands_refuse_in_the_same_way(words, says):
    assert_refused(call(*words, "--json"), says)


def test_folders_of_two_models_are_not_compared(model):
    other = MODEL.parent / "tiny-qwen3"
    words = ("evaluate", other, f"--reference={model}", f"--eval={HELD_OUT}", "--eval-tokens=512")
    assert_refused(call(*words, "--json"), "not of the same model")


@pytest.mark.parametrize(
    "words",
    [
        ("plan", MODEL, "--bpw=4", "--context=0"),
        ("plan", MODEL, "--bpw=4", f"--context={10**12}"),
        ("plan", MODEL, "--bpw=4", "--nonsense"),
        ("plan",),
        ("quantize", MODEL, "--bpw=4"),
        ("quantize", MODEL, "--bpw=4", "--out=x", "--seed=-1"),
        ("quantize", MODEL, "--bpw=4", "--out=x", f"--seed={2**70}"),
        ("quantize", MODEL, "--bpw=4", "--out=x", "--calibration-tokens=0"),
        ("quantize", MODEL, "--bpw=4", "--out=x", f"--calibration-tokens={10**9}"),
        ("quantize", MODEL, "--bpw=4", "--out=x", "--eval-tokens=many"),
        ("quantize", MODEL, "--bpw=4", "--out=x", f"--eval-tokens={10**9}"),
        ("quantize", MODEL, "--bpw=4", "--out=x", "--time-budget=nan"),
        ("quantize", MODEL, "--bpw=4", "--out=x", "--time-budget=-1"),
        ("measure", MODEL, "--out=x", "--calibration-tokens=0"),
        ("evaluate", MODEL, f"--reference={MODEL}", "--eval-tokens=0"),
        ("jobs", "list", "--limit=0"),
        ("nonsense",),
    ],
)
def test_what_the_parser_refuses_ends_with_code_two_and_an_empty_stdout(words):
    finished = call(*words)
    assert finished.code == 2
    assert finished.out == ""
    assert "Traceback" not in finished.err


def test_a_refusal_looks_the_same_in_a_process_of_its_own(out):
    finished = run("quantize", MODEL, "--bpw=1", f"--out={out}", "--json", *QUICK)
    assert_refused(finished, RANGE)
    assert_nothing_written(out)


@pytest.mark.parametrize("encoder", ["minmax", "gptq"])
@pytest.mark.parametrize(
    ("tensor", "layer"),
    [
        ("model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.up_proj"),
        ("model.layers.3.input_layernorm.weight", "model.layers.3"),
    ],
)
def test_nan_in_a_weight_ends_the_job_with_the_name_of_the_layer(
    tensor, layer, encoder, model, out
):
    def spoil(weights: dict[str, mx.array]) -> None:
        weights[tensor] = mx.where(mx.arange(weights[tensor].shape[-1]) == 3, math.nan, 1.0)[
            None if weights[tensor].ndim == 2 else ...
        ] * mx.ones_like(weights[tensor])

    edit_weights(model, spoil)
    finished = quantize(model, out, f"--encoder={encoder}")
    assert finished.code == 4, finished.err
    assert finished.out == ""
    assert "Traceback" not in finished.err
    assert layer in finished.err.splitlines()[-1]
    assert_nothing_written(out)


def test_a_file_size_limit_in_the_middle_leaves_nothing(out):
    limit = 300_000
    finished = run(
        "quantize", MODEL, "--bpw=4", f"--out={out}", "--json", *QUICK,
        env={"COVERAGE_PROCESS_CONFIG": ""},  # its data would be larger than the limit
        preexec=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert finished.code == 3, finished.err
    assert finished.out == ""
    assert "The disk is full" in finished.err.splitlines()[-1]
    assert "Traceback" not in finished.err
    assert_nothing_written(out)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk of a given size."""
    mount, umount = shutil.which("mount"), shutil.which("umount")
    point = tmp_path / "disk"
    point.mkdir()
    mounted = False

    def make(size: str) -> Path:
        nonlocal mounted
        if os.geteuid() != 0 or mount is None or umount is None or sys.platform != "linux":
            pytest.skip("only root on Linux can mount a small disk")
        done = subprocess.run(
            [mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs", point],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"this machine mounts no tmpfs: {done.stderr.decode().strip()}")
        mounted = True
        return point

    yield make
    if mounted and umount is not None:
        subprocess.run([umount, point], check=True)


@pytest.mark.parametrize("size", ["1350k"])  # in what comes after the weights
def test_a_disk_that_fills_up_in_the_middle_leaves_nothing(size, small_disk):
    disk = small_disk(size)
    finished = run("quantize", MODEL, "--bpw=4", f"--out={disk / 'out'}", "--json", *QUICK)
    assert finished.code == 3, finished.err
    assert finished.out == ""
    assert "The disk is full" in finished.err.splitlines()[-1]
    assert list(disk.iterdir()) == []


def test_a_killed_run_leaves_no_model_and_the_next_run_cleans_up(out):
    words = ("quantize", MODEL, "--bpw=4", f"--out={out}", "--json", *QUICK)
    child = subprocess.Popen(
        [sys.executable, "-m", "dynquant", *map(str, words)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(lambda: list(out.glob(".*")) or child.poll() is not None)
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert [path.name[0] for path in out.iterdir()] == ["."]
    finished = call(*words).check()
    assert [path.name for path in out.iterdir()] == ["sample-2m-MLX-4.0bpw"]
    assert Path(finished.json["models"][0]["folder"]).is_dir()
