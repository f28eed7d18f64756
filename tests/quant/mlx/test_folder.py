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
from dynquant.model.limits import MAX_SMALL_FILE_BYTES, MAX_SMALL_FILES
from dynquant.quant.mlx.folder import (
    as_loaded,
    check_folder,
    fingerprint,
    taken_over,
    weight_files,
    weights_of,
)
from dynquant.quant.mlx.headers import read_header
from tests.json_values import json_values
from tests.quant.mlx.factories import write_safetensors

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


def test_a_tensor_that_no_file_has_is_named(folder):
    set_index(folder, {"weight_map": {"a": "model.safetensors", "b": "model.safetensors"}})
    refused(folder, InvalidModelError, r"places tensor 'b' in 'model\.safetensors'")


def test_a_stale_index_does_no_harm_while_the_weights_are_there(folder):
    set_index(folder, {"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    check_folder(folder)
    assert [file.name for file in weight_files(folder)] == ["model.safetensors"]


def test_a_sidecar_that_mlx_lm_does_not_read_is_taken_for_left_out(folder, caplog):
    write_safetensors(folder / "mtp.safetensors", {"mtp.fc": F32}, bytes(32))
    weight_map = {"a": "model.safetensors", "mtp.fc": "mtp.safetensors"}
    set_index(folder, {"weight_map": weight_map})
    with caplog.at_level("INFO"):
        check_folder(folder)
    assert weights_of(folder).left_out == {"mtp.safetensors": ("mtp.fc",)}
    assert "'mtp.fc'" in caplog.text
    (folder / "mtp.safetensors").unlink()  # nobody needs it
    check_folder(folder)


def test_an_older_export_beside_the_files_of_the_index_is_neither_read_nor_called_corrupt(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    set_index(folder, {"weight_map": {"a": "model-00001-of-00001.safetensors"}})
    before = fingerprint(folder)
    write_safetensors(folder / "model.safetensors", {"a": F32}, bytes(range(32)))
    check_folder(folder)
    assert [file.name for file in weight_files(folder)] == ["model-00001-of-00001.safetensors"]
    assert fingerprint(folder) == before
    with as_loaded(folder) as seen:
        assert {file.name for file in seen.iterdir()} == {
            "config.json",
            "model.safetensors.index.json",
            "model-00001-of-00001.safetensors",
        }


def test_two_copies_without_an_index_are_refused_by_both_names(folder):
    (folder / "model.safetensors.index.json").unlink()
    shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    sentence = refused(folder, InvalidModelError, "both in")
    assert "'model.safetensors'" in sentence
    assert "'model-00001-of-00001.safetensors'" in sentence
    assert "corrupt" not in sentence


def test_a_folder_without_a_second_copy_is_loaded_as_it_is(folder):
    with as_loaded(folder) as seen:
        assert seen == folder


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
    refused(folder, InvalidModelError, "under plain names")


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


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 9\n" % (b"0" * 64)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "tokenizer.model"])
def test_a_pointer_of_git_lfs_is_told_with_what_to_run(folder, name):
    (folder / name).write_bytes(POINTER)
    sentence = refused(folder, InvalidModelError, "git lfs pull")
    assert f"'{name}'" in sentence


def test_a_pointer_of_git_lfs_in_a_file_that_nobody_needs_does_no_harm(folder):
    (folder / "picture.png").write_bytes(POINTER)
    check_folder(folder)


def add_template(folder: Path, name: str = "tool_use.jinja", content: str = "x") -> Path:
    path = folder / "additional_chat_templates" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def test_what_a_quantized_model_takes_over_is_listed_with_its_folder(folder):
    add_template(folder)
    for name in ("tokenizer.json", "MODEL_LICENSE", "README.md", "tokenizer.py"):
        (folder / name).write_text("{}")
    (folder / "LICENSES").mkdir()
    (folder / "LICENSES" / "MIT.txt").write_text("Do as you like.")
    (folder / "original").mkdir()
    (folder / "original" / "tokenizer.model").write_text("x")
    (folder / "vocab.txt").mkdir()
    assert taken_over(folder) == [
        "LICENSES/MIT.txt",
        "MODEL_LICENSE",
        "additional_chat_templates/tool_use.jinja",
        "tokenizer.json",
    ]
    check_folder(folder)


def test_a_named_template_may_be_no_link_out_of_the_folder(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("s")
    path = add_template(folder)
    path.unlink()
    path.symlink_to(secret)
    refused(folder, InvalidModelError, "'additional_chat_templates/tool_use.jinja' is a link")


def test_the_folder_of_named_templates_may_be_no_link_either(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("elsewhere")
    (outside / "a.jinja").write_text("s")
    (folder / "additional_chat_templates").symlink_to(outside)
    refused(folder, InvalidModelError, "'additional_chat_templates' is a link")


def test_named_templates_are_bounded_in_size_number_and_name(folder):
    path = add_template(folder)
    with path.open("wb") as stream:
        stream.truncate(MAX_SMALL_FILE_BYTES + 1)
    refused(folder, InvalidModelError, "larger than")
    path.unlink()
    odd = add_template(folder, "a\nb.jinja")
    refused(folder, InvalidModelError, "Rename it")
    odd.unlink()
    for number in range(MAX_SMALL_FILES + 1):
        add_template(folder, f"{number}.jinja")
    refused(folder, InvalidModelError, "1,001 files beside its weights")


def test_a_large_license_is_refused_as_a_large_tokenizer_is(folder):
    with (folder / "LICENSE").open("wb") as stream:
        stream.truncate(MAX_SMALL_FILE_BYTES + 1)
    refused(folder, InvalidModelError, "'LICENSE' is larger than")
