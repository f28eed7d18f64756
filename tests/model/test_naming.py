from __future__ import annotations

import pytest
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # not in its __all__
from hypothesis import given
from hypothesis import strategies as st

from dynquant.errors import InvalidOptionError
from dynquant.model.naming import MAX_NAME_LENGTH, quantized_name, repo_ids


@pytest.mark.parametrize(
    ("source", "target_bpw", "name"),
    [
        ("Qwen/Qwen3-8B", 4.5, "Qwen3-8B-MLX-4.5bpw"),
        ("Qwen/Qwen3-8B", 4.0, "Qwen3-8B-MLX-4.0bpw"),
        ("Qwen/Qwen3-8B", 4, "Qwen3-8B-MLX-4.0bpw"),
        ("Qwen/Qwen3-8B", 4.25, "Qwen3-8B-MLX-4.25bpw"),
        ("Qwen/Qwen3-8B", 0.1 + 0.2 + 4.0, "Qwen3-8B-MLX-4.3bpw"),
        ("my-folder/", 3.5, "my-folder-MLX-3.5bpw"),
        ("C:\\models\\tiny", 3.5, "tiny-MLX-3.5bpw"),
        ("my model (v2)", 3.5, "my-model-v2-MLX-3.5bpw"),
        ("-.a--b..c-.", 3.5, "a-b.c-MLX-3.5bpw"),
        ("modèle", 3.5, "modele-MLX-3.5bpw"),
        ("模型", 3.5, "model-MLX-3.5bpw"),
        ("", 3.5, "model-MLX-3.5bpw"),
    ],
)
def test_the_name_says_model_and_size(source, target_bpw, name):
    assert quantized_name(source, target_bpw) == name


def test_a_long_name_is_cut_before_its_size():
    name = quantized_name("a" * 84 + "-bcd", 4.5)
    assert name == "a" * 84 + "-MLX-4.5bpw"
    assert len(quantized_name("b" * 300, 4.5)) == MAX_NAME_LENGTH


@given(
    source=st.text(max_size=200) | st.from_regex(r"[A-Za-z0-9._/-]{0,120}", fullmatch=True),
    target_bpw=st.floats(min_value=0.5, max_value=64),
)
def test_the_hub_takes_every_name(source, target_bpw):
    name = quantized_name(source, target_bpw)
    validate_repo_id(name)
    validate_repo_id(f"someone/{name}")
    assert not set("-.") & {name[0], name[-1]}


TARGETS = {
    "Qwen3-8B-MLX-4.5bpw": ("Qwen/Qwen3-8B", 4.5),
    "Qwen3-8B-MLX-6.0bpw": ("Qwen/Qwen3-8B", 6.0),
}


def test_a_namespace_takes_the_default_names():
    assert repo_ids("you", TARGETS) == {name: f"you/{name}" for name in TARGETS}


def test_a_repo_id_may_have_placeholders():
    assert list(repo_ids("you/{model}-{bpw}", TARGETS).values()) == [
        "you/Qwen3-8B-4.5",
        "you/Qwen3-8B-6.0",
    ]


def test_one_repo_id_is_for_one_model():
    one = dict(list(TARGETS.items())[:1])
    assert list(repo_ids("you/mine", one).values()) == ["you/mine"]
    with pytest.raises(InvalidOptionError, match=r"2 models.*\{bpw\}"):
        repo_ids("you/mine", TARGETS)


@pytest.mark.parametrize(
    "destination",
    [
        "",
        "/",
        "you/",
        "/mine",
        "a/b/c",
        "you/my model",
        "you/a--b",
        "you/a..b",
        "you/-a",
        "you/a.git",
        "you/" + "a" * 97,
        "../you",
        "you/{unknown}",
        "https://huggingface.co/you/mine",
        "you\n/a",
    ],
)
def test_what_the_hub_would_not_take_is_refused(destination):
    with pytest.raises(InvalidOptionError, match="cannot be the id of a repo"):
        repo_ids(destination, dict(list(TARGETS.items())[:1]))


@given(source=st.text(max_size=200), bpw=st.floats(2, 16))
def test_the_default_name_of_anything_makes_a_repo_id_that_the_hub_takes(source, bpw):
    name = quantized_name(source, bpw)
    (repo_id,) = repo_ids("you", {name: (source, bpw)}).values()
    validate_repo_id(repo_id)


@given(destination=st.text(max_size=30), source=st.text(max_size=30), bpw=st.floats(2, 16))
def test_no_destination_makes_an_id_that_the_hub_would_refuse(destination, source, bpw):
    try:
        (repo_id,) = repo_ids(destination, {quantized_name(source, bpw): (source, bpw)}).values()
    except InvalidOptionError:
        return
    validate_repo_id(repo_id)
    assert repo_id.count("/") == 1


@pytest.mark.harden("names")
@pytest.mark.parametrize("author", ["THUDM", "CohereForAI", "NousResearch"])
def test_an_account_that_was_given_up_or_uploads_models_of_others_is_named(author):
    found = repo_ids("you", {"quant": (f"{author}/Model", 4.5)})
    assert found == {"quant": f"you/{author}__Model-MLX-4.5bpw"}
