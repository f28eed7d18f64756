from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynquant.errors import (
    DynquantError,
    InvalidModelError,
    ModelNotFoundError,
    UnsupportedModelError,
)
from dynquant.mlx_backend.folder import check_folder, fingerprint, read_header, weight_files
from tests.json_values import json_values
from tests.mlx_backend.factories import write_safetensors

F32 = {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}


def refused(folder: Path, error: type[DynquantError], pattern: str) -> str:
    """The sentence with which a folder is refused; it names no folder above the model's own."""
    with pytest.raises(error, match=pattern) as raised:
        check_folder(folder)
    assert type(raised.value) is error
    sentence = str(raised.value)
    assert str(folder.parent) not in sentence.replace(str(folder), "")
    assert sentence.endswith((".", "convert."))
    return sentence


@pytest.fixture
def folder(tmp_path) -> Path:
    """The smallest folder that passes: one tensor, in one shard of an index."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    write_safetensors(tmp_path / "model.safetensors", {"a": F32}, bytes(32))
    index = {"metadata": {}, "weight_map": {"a": "model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def set_index(folder: Path, content: object) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "model.safetensors.index.json").write_text(text)


def test_a_sound_folder_gives_its_config(folder):
    assert check_folder(folder) == {"model_type": "llama"}
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]


def test_a_real_model_passes(shared):
    config = check_folder(shared / "models" / "tiny-qwen3")
    assert config["model_type"] == "qwen3"
    assert len(weight_files(shared / "models" / "tiny-qwen3")) == 2


def test_a_folder_that_is_not_there_is_named_as_it_was_typed(tmp_path):
    sentence = refused(tmp_path / "typo", ModelNotFoundError, "no model folder")
    assert str(tmp_path / "typo") in sentence


def test_a_file_is_no_model_folder(folder):
    refused(folder / "config.json", ModelNotFoundError, "no model folder")


def test_a_folder_without_config_is_refused(folder):
    (folder / "config.json").unlink()
    refused(folder, InvalidModelError, r"no config\.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 200_000])
def test_a_config_that_is_not_json_is_refused(folder, content):
    (folder / "config.json").write_bytes(content)
    refused(folder, InvalidModelError, r"config\.json is not valid JSON")


@pytest.mark.parametrize("content", [[], "llama", None, {}, {"model_type": 3}])
def test_a_config_without_a_model_type_is_refused(folder, content):
    (folder / "config.json").write_text(json.dumps(content))
    refused(folder, InvalidModelError, "names no model_type")


@pytest.mark.parametrize("value", ["modeling.py", "", 1])
def test_a_model_that_brings_code_is_refused(folder, value):
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "model_file": value}))
    refused(folder, UnsupportedModelError, "never runs code from a model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_a_model_with_only_pickled_weights_is_refused(folder, name):
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, UnsupportedModelError, "only PyTorch weights")


def test_pickled_weights_beside_safetensors_do_no_harm(folder):
    (folder / "pytorch_model.bin").write_bytes(b"x")
    check_folder(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").rename(folder / "adapter.safetensors")
    refused(folder, InvalidModelError, "no weights here")


@pytest.mark.parametrize("num_bytes", [0, 7, 8, 30])
def test_a_file_cut_off_in_its_header_is_refused(folder, num_bytes):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:num_bytes])
    refused(folder, InvalidModelError, r"'model\.safetensors' is truncated .* too short")


def test_a_file_cut_off_in_its_data_is_refused(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    refused(folder, InvalidModelError, "tensor 'a' does not fit")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001])
def test_a_huge_header_is_refused_unread(folder, length):
    file = folder / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + b"{}")
    refused(folder, InvalidModelError, "too short for the header")


def test_a_header_above_our_limit_is_refused_though_the_file_is_long_enough(folder):
    """A sparse file: its size is there, its bytes are not."""
    file = folder / "model.safetensors"
    with file.open("wb") as stream:
        stream.write((200_000_000).to_bytes(8, "little"))
        stream.truncate(300_000_000)
    refused(folder, InvalidModelError, "The headers .* are larger than")


@pytest.mark.parametrize("raw", [b"{", b"\xff" * 9, b"[" * 200_000])
def test_a_header_that_is_not_json_is_refused(folder, raw):
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    refused(folder, InvalidModelError, "header is not JSON")


def test_a_header_that_is_no_object_is_refused(folder):
    raw = b"[1, 2]"
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    refused(folder, InvalidModelError, "not a JSON object")


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [],
        "F32",
        {},
        {"dtype": "F32", "shape": [2, 4]},
        {"dtype": "F32", "data_offsets": [0, 32]},
        F32 | {"dtype": "F7"},
        F32 | {"dtype": ["F32"]},
        F32 | {"shape": "24"},
        F32 | {"shape": 8},
        F32 | {"shape": None},
        F32 | {"shape": [2, None]},
        F32 | {"data_offsets": [0]},
        F32 | {"data_offsets": [0, 16, 32]},
        F32 | {"data_offsets": ["0", "32"]},
        F32 | {"data_offsets": None},
        F32 | {"shape": [2, "4"]},
        F32 | {"shape": [[2], 4]},
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(folder, entry: Any):
    write_safetensors(folder / "model.safetensors", {"a": entry}, bytes(32))
    refused(folder, InvalidModelError, r"tensor 'a' (makes no sense|does not fit)")


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 33]},
        {"data_offsets": [-8, 24]},
        {"data_offsets": [32, 0]},
        {"shape": [2, 5]},
        {"shape": [-2, -4]},
        {"shape": [2.0, 4.0]},
        {"shape": [2**40, 2**40]},
        {"dtype": "F64"},
    ],
)
def test_a_tensor_that_does_not_fit_its_place_is_refused(folder, change):
    write_safetensors(folder / "model.safetensors", {"a": F32 | change}, bytes(32))
    refused(folder, InvalidModelError, "tensor 'a' does not fit")


def test_tensors_that_overlap_are_refused(folder):
    entries = {"a": F32, "b": F32 | {"data_offsets": [16, 48]}}
    write_safetensors(folder / "model.safetensors", entries, bytes(48))
    refused(folder, InvalidModelError, "tensors overlap")


def test_a_long_tensor_name_is_cut(folder):
    write_safetensors(folder / "model.safetensors", {"x" * 5000: {}}, bytes(32))
    assert len(refused(folder, InvalidModelError, "makes no sense")) < 300


def test_empty_tensors_scalars_metadata_and_sub_byte_types_pass(tmp_path):
    entries: dict[str, Any] = {
        "__metadata__": {"format": "pt"},
        "empty": {"dtype": "F32", "shape": [0, 4], "data_offsets": [0, 0]},
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "packed": {"dtype": "F4", "shape": [4, 2], "data_offsets": [4, 8]},
    }
    header = read_header(write_safetensors(tmp_path / "model.safetensors", entries, bytes(8)))
    assert set(header) == {"empty", "scalar", "packed"}


odd_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F4", "X"]) | json_values,
        "shape": st.lists(st.integers(-2, 9), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-2, 50), min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=5), odd_entries | json_values, max_size=3))
def test_a_header_of_anything_is_either_true_or_refused(tmp_path, entries):
    file = write_safetensors(tmp_path / "model.safetensors", entries, bytes(48))
    try:
        header = read_header(file)
    except InvalidModelError:
        return
    for entry in header.values():
        start, end = entry["data_offsets"]
        assert 0 <= start <= end <= 48


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=64))
def test_a_file_of_anything_is_either_true_or_refused(tmp_path, content):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    try:
        read_header(file)
    except InvalidModelError as error:
        assert "model.safetensors" in str(error)  # noqa: PT017


def test_a_shard_of_the_index_that_is_missing_is_named(folder):
    set_index(folder, {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
    sentence = refused(folder, InvalidModelError, r"lists 1 weight file")
    assert "model-2.safetensors" in sentence


def test_a_tensor_that_its_shard_lacks_is_named(folder):
    set_index(folder, {"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}})
    refused(folder, InvalidModelError, r"places tensor 'b' in 'model\.safetensors'")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "null", {}, {"weight_map": []}, {"weight_map": None}]
)
def test_an_index_that_is_none_is_refused(folder, content):
    set_index(folder, content)
    refused(folder, InvalidModelError, r"index\.json is not a valid index")


def test_an_index_may_point_nowhere_outside_the_folder(folder):
    outside = folder.parent / "model-outside.safetensors"
    shutil.copy(folder / "model.safetensors", outside)
    set_index(folder, {"weight_map": {"a": f"../{outside.name}"}})
    refused(folder, InvalidModelError, "not here")


def test_a_folder_without_an_index_passes(folder):
    (folder / "model.safetensors.index.json").unlink()
    check_folder(folder)


def test_the_fingerprint_names_the_weights(folder, tmp_path_factory):
    before = fingerprint(folder)
    copied = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, copied)
    assert fingerprint(copied) == before
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert fingerprint(folder) != before


def test_the_fingerprint_of_a_large_file_notices_other_weights_of_the_same_shape(folder):
    prints = set()
    for fill in (b"\x00", b"\x01"):
        entry = {"a": {"dtype": "U8", "shape": [1 << 21], "data_offsets": [0, 1 << 21]}}
        write_safetensors(folder / "model.safetensors", entry, fill * (1 << 21))
        prints.add(fingerprint(folder))
    assert len(prints) == 2


def test_the_fingerprint_depends_on_the_config(folder):
    before = fingerprint(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    assert fingerprint(folder) != before
