from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model

from dynquant.errors import StorageFullError
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.encoding import encode_min_max
from dynquant.quant.mlx.folder import check_folder
from dynquant.quant.mlx.writing import (
    PART_BYTES,
    FolderWriter,
    quantization_config,
    translated_storage_errors,
)
from dynquant.quant.plan import QuantPlan
from tests.quant.mlx.factories import build_model, save_model
from tests.waiting import PATIENCE_SECS

G4, G8 = QuantFormat(4, 64), QuantFormat(8, 32)
FLOAT = QuantFormat(4, 32, "mxfp4")


def make_plan(*formats: QuantFormat) -> QuantPlan:
    return QuantPlan(
        formats={f"layers.{i}": fmt for i, fmt in enumerate(formats)},
        target_bpw=4.5,
        stored_bpw=4.5,
        predicted_kl_nats=0.0,
        lower_bound_nats=0.0,
    )


def make_source(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


def shard_names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.safetensors"))


def test_the_most_common_format_stands_at_the_top_with_integers():
    config = quantization_config(make_plan(G4, G4, G4))
    assert config == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert [type(config[name]) for name in ("group_size", "bits")] == [int, int]


def test_other_formats_stand_by_their_paths_affine_ones_without_a_mode():
    """`affine` is every layer's default, and some layers take no `mode`."""
    config = quantization_config(make_plan(G4, G8, G4, UNQUANTIZED, FLOAT))
    assert config == {
        "group_size": 64,
        "bits": 4,
        "mode": "affine",
        "layers.1": {"group_size": 32, "bits": 8},
        "layers.3": False,
        "layers.4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    }
    json.dumps(config)


def test_affine_layers_below_another_mode_say_so():
    """An override without a mode means `affine` to mlx-lm, whatever the top level says."""
    config = quantization_config(make_plan(FLOAT, FLOAT, G8))
    assert config["mode"] == "mxfp4"
    assert config["layers.2"] == {"group_size": 32, "bits": 8}


def test_most_layers_unquantized_do_not_make_that_the_common_format():
    config = quantization_config(make_plan(UNQUANTIZED, UNQUANTIZED, G8))
    assert config == {
        "group_size": 32,
        "bits": 8,
        "mode": "affine",
        "layers.0": False,
        "layers.1": False,
    }


def test_a_plan_that_quantizes_nothing_has_no_settings():
    assert quantization_config(make_plan(UNQUANTIZED, UNQUANTIZED)) == {}


def write_arrays(
    out: Path,
    source: Path,
    *,
    shard_bytes: int,
    sizes=(100, 100, 100, 400, 50),
    part_bytes: int = PART_BYTES,
):
    out.mkdir()
    writer = FolderWriter(out, num_parameters=750, shard_bytes=shard_bytes, part_bytes=part_bytes)
    for i, size in enumerate(sizes):
        writer.add(f"a{i}", mx.full(size, float(i)))
    return writer.finish(source, {"model_type": "llama"}, keep_vision_config=False)


def test_one_shard_has_the_plain_name(tmp_path):
    total = write_arrays(tmp_path / "out", make_source(tmp_path / "src"), shard_bytes=1 << 20)
    assert total == 4 * 750
    assert shard_names(tmp_path / "out") == ["model.safetensors"]
    arrays: Any = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert {name: array.size for name, array in arrays.items()} == {
        "a0": 100, "a1": 100, "a2": 100, "a3": 400, "a4": 50
    }  # fmt: skip


def test_shards_are_cut_before_they_grow_too_large(tmp_path):
    """An array larger than a shard gets one for itself."""
    out = tmp_path / "out"
    write_arrays(out, make_source(tmp_path / "src"), shard_bytes=900)
    assert shard_names(out) == [f"model-0000{i}-of-00004.safetensors" for i in (1, 2, 3, 4)]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 3000, "total_parameters": 750}
    numbers = {name: int(shard[6:11]) for name, shard in index["weight_map"].items()}
    assert numbers == {"a0": 1, "a1": 1, "a2": 2, "a3": 3, "a4": 4}
    for name, shard in index["weight_map"].items():
        loaded: Any = mx.load(str(out / shard), return_metadata=True)
        array, metadata = loaded
        assert array[name][0].item() == float(name[1:])
        assert metadata == {"format": "mlx"}
    assert check_folder(out)["model_type"] == "llama"


@pytest.mark.parametrize("part_bytes", [1, 400, 900, 1700])
@pytest.mark.parametrize("shard_bytes", [900, 2000, 1 << 20])
def test_shards_are_the_same_whatever_is_held_in_memory(tmp_path, shard_bytes, part_bytes):
    source = make_source(tmp_path / "src")
    at_once, in_parts = tmp_path / "at once", tmp_path / "in parts"
    write_arrays(at_once, source, shard_bytes=shard_bytes)
    write_arrays(in_parts, source, shard_bytes=shard_bytes, part_bytes=part_bytes)
    index = "model.safetensors.index.json"
    assert {file.name for file in in_parts.iterdir()} == {file.name for file in at_once.iterdir()}
    assert (in_parts / index).read_text() == (at_once / index).read_text()
    for name in shard_names(at_once):
        expected: Any = mx.load(str(at_once / name), return_metadata=True)
        found: Any = mx.load(str(in_parts / name), return_metadata=True)
        assert found[1] == expected[1]
        assert {key: array.tolist() for key, array in found[0].items()} == {
            key: array.tolist() for key, array in expected[0].items()
        }
    assert check_folder(in_parts)["model_type"] == "llama"


def test_what_waits_to_be_written_does_not_keep_what_it_was_made_from(tmp_path):
    (tmp_path / "out").mkdir()
    writer = FolderWriter(tmp_path / "out", num_parameters=1)
    before = mx.get_active_memory()
    for number in range(3):
        large = mx.random.normal((1 << 18,))
        mx.eval(large)
        writer.add(f"a{number}.weight", large.reshape(-1, 64).sum(0))
        del large
    assert mx.get_active_memory() - before < 1 << 18


def test_what_belongs_to_the_model_is_copied_and_nothing_else(tmp_path):
    kept = [
        "tokenizer.json", "tokenizer_config.json", "merges.txt", "vocab.json", "tekken.json",
        "LICENSE", "MODEL_LICENSE", "license.txt", "COPYING", "Notice.txt", "USE_POLICY.md",
        "chat_template.jinja", "additional_chat_templates/tool_use.jinja", "generation_config.json",
        "processor_config.json", "sentencepiece.bpe.model",
    ]  # fmt: skip
    dropped = [
        "README.md", "modeling.py", "tokenizer.py", "model.safetensors", "tokenizer.safetensors",
        "pytorch_model.bin", ".gitattributes", "original/tokenizer.model", "quantize_config.json",
        "additional_chat_templates/run.py",
    ]  # fmt: skip
    source, out = make_source(tmp_path / "src"), tmp_path / "out"
    for name in (*kept, *dropped):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(name)
    (source / "tokenizer_folder").mkdir()
    write_arrays(out, source, shard_bytes=1 << 20)
    written = {"config.json", "model.safetensors", "model.safetensors.index.json"}
    files = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert files == {*kept, *written}
    assert {(out / name).read_text() for name in kept} == {*kept}


def test_the_settings_stand_under_both_names_and_stock_mlx_lm_loads_the_folder(tmp_path):
    source = save_model(tmp_path / "source")
    model, config = build_model()
    formats = {"model.embed_tokens": G8, "model.layers.1.mlp.up_proj": UNQUANTIZED}
    layers = {path: m for path, m in model.named_modules() if hasattr(m, "to_quantized")}
    plan = QuantPlan(
        formats={path: formats.get(path, G4) for path in layers},
        target_bpw=5,
        stored_bpw=5,
        predicted_kl_nats=0,
        lower_bound_nats=0,
    )
    out = tmp_path / "out"
    out.mkdir()
    writer = FolderWriter(out, num_parameters=1, shard_bytes=40_000)
    for path, layer in layers.items():
        if plan.formats[path] == UNQUANTIZED:
            writer.add(f"{path}.weight", layer.weight)
        else:
            writer.add_layer(path, encode_min_max(layer.weight, plan.formats[path]))
    for path, module in model.named_modules():
        if "norm" in path:
            writer.add(f"{path}.weight", module.weight)
    writer.finish(
        source, config | {"quantization": quantization_config(plan)}, keep_vision_config=False
    )
    written = json.loads((out / "config.json").read_text())
    assert written["quantization"] == written["quantization_config"]
    loaded, _ = load_model(out)
    assert loaded.model.embed_tokens.bits == 8
    assert loaded.model.layers[0].mlp.up_proj.bits == 4
    assert not hasattr(loaded.model.layers[1].mlp.up_proj, "bits")
    assert len(shard_names(out)) > 2


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO]
)
def test_a_disk_that_cannot_be_written_is_our_own_error(number):
    with pytest.raises(StorageFullError) as raised, translated_storage_errors():
        raise OSError(number, os.strerror(number), "/private/place")
    assert "/private" not in str(raised.value)


def test_other_errors_of_the_system_stay_what_they_are():
    with pytest.raises(PermissionError), translated_storage_errors():
        raise PermissionError(errno.EACCES, "no")


# The limit on the size of a file is the kernel's, so a write really comes up short.
LIMITED = """
import json, resource, signal, sys
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import dynquant.quant.mlx
import mlx.core as mx
from dynquant.errors import StorageFullError
from dynquant.quant.mlx.writing import FolderWriter

source, *outs = map(Path, json.loads(sys.argv[1]))
cases = json.loads(sys.argv[2])
arrays = [mx.zeros(10_000) + i for i in range(4)]
mx.eval(arrays)
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
said = []
for out, (limit, shard_bytes, part_bytes) in zip(outs, cases, strict=True):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    sizes = {"shard_bytes": shard_bytes, "part_bytes": part_bytes}
    writer = FolderWriter(out, num_parameters=1, **sizes)
    try:
        for i, array in enumerate(arrays):
            writer.add(f"a{i}", array)
        writer.finish(source, {"model_type": "llama"}, keep_vision_config=False)
        said.append("written")
    except StorageFullError as error:
        said.append(f"refused: {error}")
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
print(json.dumps(said))
"""


def test_a_disk_that_fills_up_is_told_and_never_a_short_file_kept(tmp_path):
    source = make_source(tmp_path / "src", tokenizer__json="x" * 50_000)
    cases = {
        "the first shard does not fit": (30_000, 40_000, 40_000),
        "the tokenizer does not fit": (45_000, 40_000, 40_000),
        "one large shard breaks off in its middle": (100_000, 200_000, 200_000),
        "only the last bytes are missing": (160_010, 200_000, 200_000),
        "parts fit, all of them in one file do not": (60_000, 200_000, 40_000),
        "all fits": (60_000, 40_000, 40_000),
    }
    outs = [tmp_path / name for name in cases]
    for out in outs:
        out.mkdir()
    child = subprocess.run(
        [sys.executable, "-c", LIMITED, json.dumps(list(map(str, [source, *outs]))),
         json.dumps(list(cases.values()))],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECS,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    *refused, fits = json.loads(child.stdout)
    assert fits == "written"
    assert check_folder(outs[-1])
    for sentence in refused:
        assert sentence.startswith("refused: The disk is full or cannot be written")
        assert str(tmp_path) not in sentence
