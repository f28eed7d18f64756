from __future__ import annotations

import json
from typing import Any

import pytest

from dynquant.errors import InvalidModelError
from dynquant.model.weight_files import WeightFiles, chosen_files, is_settled, weight_map_in

ONE, TWO, WHOLE = "model-1.safetensors", "model-2.safetensors", "model.safetensors"


def chosen(tensors: dict[str, str], **weight_map: str) -> WeightFiles:
    """The choice among files of the tensors that a string lists, a letter each."""
    return chosen_files({name: list(each) for name, each in tensors.items()}, weight_map)


def refused(tensors: dict[str, str], **weight_map: str) -> str:
    with pytest.raises(InvalidModelError) as caught:
        chosen(tensors, **weight_map)
    return str(caught.value)


def test_without_an_index_all_files_count():
    assert chosen({TWO: "b", ONE: "a"}) == WeightFiles(read=(ONE, TWO), copies=(), left_out={})


def test_a_true_index_changes_nothing():
    found = chosen({ONE: "ab", TWO: "c"}, a=ONE, b=ONE, c=TWO)
    assert found == WeightFiles(read=(ONE, TWO), copies=(), left_out={})
    assert found.notes == ()


def test_a_second_copy_beside_the_files_of_the_index_does_not_count():
    found = chosen({ONE: "ab", TWO: "c", WHOLE: "abc"}, a=ONE, b=ONE, c=TWO)
    assert found == WeightFiles(read=(ONE, TWO), copies=(WHOLE,), left_out={})
    (note,) = found.notes
    assert f"'{WHOLE}'" in note
    assert "second copy" in note


def test_a_copy_with_more_in_it_is_no_less_a_copy():
    found = chosen({ONE: "ab", WHOLE: "abd"}, a=ONE, b=ONE)
    assert (found.read, found.copies, found.left_out) == ((ONE,), (WHOLE,), {WHOLE: ("d",)})
    assert any("'d'" in note for note in found.notes)


def test_a_file_that_the_index_forgets_counts_as_mlx_lm_reads_it():
    assert chosen({ONE: "ab", TWO: "c"}, a=ONE, b=ONE).read == (ONE, TWO)


def test_a_sidecar_of_the_index_is_left_out_and_named_whether_it_is_there_or_not():
    found = chosen({WHOLE: "a"}, a=WHOLE, d="mtp.safetensors", e="mtp.safetensors")
    assert found == WeightFiles(read=(WHOLE,), copies=(), left_out={"mtp.safetensors": ("d", "e")})
    (note,) = found.notes
    assert "'d', 'e'" in note
    assert "'mtp.safetensors'" in note


def test_an_index_of_files_that_were_cut_anew_is_stale_and_does_no_harm():
    old = "model-00001-of-00003.safetensors"
    assert chosen({ONE: "ab", TWO: "c"}, a=old, b=old, c=old).read == (ONE, TWO)
    assert chosen({ONE: "ab", TWO: "c"}, a=TWO, b=ONE, c=ONE).read == (ONE, TWO)
    assert chosen({WHOLE: "ab"}, a="old.safetensors", b="old.safetensors").left_out == {}


@pytest.mark.parametrize(
    "weight_map",
    [{}, {"a": "model-0.safetensors"}, {"a": TWO, "b": TWO}],
    ids=["no index", "a stale one", "one that is not true"],
)
def test_of_two_files_that_nothing_decides_between_none_is_taken(weight_map):
    sentence = refused({ONE: "ab", WHOLE: "ab"}, **weight_map)
    assert f"'{ONE}'" in sentence
    assert f"'{WHOLE}'" in sentence
    assert "corrupt" not in sentence
    assert "ownload" not in sentence


def test_two_files_of_an_index_may_not_share_a_tensor():
    assert "both in" in refused({ONE: "ab", TWO: "bc"}, a=ONE, b=ONE, c=TWO)


def test_weights_that_are_nowhere_are_missed_by_the_name_of_their_file():
    sentence = refused({ONE: "a"}, a=ONE, b=TWO, c="model-3.safetensors")
    assert "2 weight file(s) that are not here, such as 'model-2.safetensors'" in sentence
    assert "Finish the download" in sentence


def test_a_tensor_that_its_file_lacks_is_named():
    sentence = refused({ONE: "a"}, a=ONE, b=ONE)
    assert "'b'" in sentence
    assert f"'{ONE}'" in sentence


def test_a_stale_index_makes_no_mixture_of_an_old_export_with_a_new_one():
    """One shard of the old is left, the index still names both, and all is in the new."""
    sentence = refused({ONE: "ab", WHOLE: "abc"}, a=ONE, b=ONE, c=TWO)
    assert "both in" in sentence


def test_notes_name_a_few_of_very_many():
    left_out = {f"{i}": f"side-{i}.safetensors" for i in range(10_000)}
    (note,) = chosen({WHOLE: "a"}, **left_out).notes
    assert "and 9,995 more" in note
    assert len(note) < 600


@pytest.mark.parametrize(
    ("files", "weight_map", "expected"),
    [
        ([ONE, TWO], {"a": ONE, "b": TWO}, True),
        ([ONE, TWO], {"a": ONE, "b": TWO, "c": "mtp.safetensors"}, True),
        ([WHOLE], {}, True),
        ([WHOLE], {"a": "mtp.safetensors"}, True),
        ([ONE, TWO], {}, False),
        ([ONE, WHOLE], {"a": ONE}, False),
        ([ONE], {"a": ONE, "b": TWO}, False),
    ],
)
def test_headers_are_needed_only_where_index_and_files_disagree(files, weight_map, expected):
    assert is_settled(files, weight_map) == expected


def test_an_index_is_read():
    assert weight_map_in(json.dumps({"metadata": {}, "weight_map": {"a": ONE}})) == {"a": ONE}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "3", "null", "{}", '{"weight_map": []}', b"\xff\xfe", "[" * 200_000],
)
def test_what_is_no_index_is_refused(content: Any):
    with pytest.raises(InvalidModelError, match="not a valid index"):
        weight_map_in(content)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "a\0\x1b[2J", "x" * 300])
def test_an_index_may_name_only_plain_files(file):
    with pytest.raises(InvalidModelError, match="under plain names"):
        weight_map_in(json.dumps({"weight_map": {"a": file}}))
