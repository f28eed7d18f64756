from __future__ import annotations

import json
import shutil
from base64 import b64encode
from pathlib import Path

import pytest
from tokenizers import Tokenizer, normalizers
from transformers.models.auto.tokenization_auto import (
    TOKENIZER_MAPPING_NAMES,
    tokenizer_class_from_name,
)

from dynquant.errors import InvalidModelError, Reason, RequestError, UnsupportedModelError
from dynquant.model.files import TEMPLATES, is_taken_over
from dynquant.quant.mlx.folder import taken_over
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.tokenizing import open_tokenizer, require_same_tokenizer
from tests.quant.mlx.factories import save_model

CHATTY = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
BYTES = "".join(f"{b64encode(bytes([i])).decode()} {i}\n" for i in range(256))


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_model(tmp_path / "model", vocab_size=300)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_tokenizer(folder: Path) -> Path:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    return folder


def add_templates(folder: Path, **templates: str) -> None:
    (folder / TEMPLATES).mkdir(exist_ok=True)
    for name, text in templates.items():
        (folder / TEMPLATES / f"{name}.jinja").write_text(text)


def add_tekken(folder: Path) -> None:
    """The one file of a Mistral tokenizer: a token for each byte."""
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"]
    content = {
        "config": {
            "pattern": r"[^\s]+|\s+",
            "num_vocab_tokens": 256,
            "default_vocab_size": 262,
            "default_num_special_tokens": 6,
            "version": "v3",
        },
        "vocab": [
            {"rank": i, "token_bytes": b64encode(bytes([i])).decode(), "token_str": None}
            for i in range(256)
        ],
        "special_tokens": [
            {"rank": i, "token_str": name, "is_control": True} for i, name in enumerate(names)
        ],
    }
    (folder / "tekken.json").write_text(json.dumps(content))


def refusal(folder: Path) -> RequestError:
    with pytest.raises(RequestError) as caught:
        open_tokenizer(folder)
    assert str(folder.parent) not in str(caught.value)
    assert str(caught.value).endswith(".")
    return caught.value


# Opening


def test_every_file_that_a_tokenizer_of_transformers_names_is_taken_over():
    names = sorted(set(filter(None, TOKENIZER_MAPPING_NAMES.values())))
    opened = {
        file
        for tokenizer in map(tokenizer_class_from_name, names)
        for file in getattr(tokenizer, "vocab_files_names", {}).values()
    }
    assert len(opened) > 10
    assert {file for file in opened if not is_taken_over(file)} == set()


def test_a_tokenizer_is_opened_from_the_models_folder(folder):
    tokenizer = open_tokenizer(folder)
    ids = tokenizer.encode("a b", add_special_tokens=False)
    assert tokenizer.decode(ids) == "a b"
    assert not tokenizer.has_chat_template


def test_tokens_that_end_a_text_are_those_that_stock_mlx_lm_stops_at(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert open_tokenizer(folder).eos_token_ids >= {5, 7}


@pytest.mark.parametrize("content", [None, "", "{", '{"model": 5}'])
def test_a_model_without_a_working_tokenizer_is_refused_without_its_path(folder, content):
    (folder / "tokenizer.json").unlink()
    if content is not None:
        (folder / "tokenizer.json").write_text(content)
    assert "tokenizer of this model cannot be opened" in str(refusal(folder))


def test_a_damaged_file_of_a_tokenizer_is_named(folder):
    (folder / "tokenizer_config.json").write_text("{")
    assert "'tokenizer_config.json' is not valid JSON" in str(refusal(folder))


def test_a_model_without_a_vocabulary_is_not_to_be_downloaded_again(folder):
    said = str(refusal(without_tokenizer(folder)))
    assert "no vocabulary, such as tokenizer.json" in said
    assert "ownload" not in said


def test_a_tokenizer_that_needs_a_package_names_its_file_and_the_package(folder):
    pytest.importorskip("sentencepiece")
    (without_tokenizer(folder) / "tiktoken.model").write_text(BYTES)
    said = str(refusal(folder))
    assert "'tiktoken.model'" in said
    assert "pip install tiktoken" in said


def test_a_damaged_sentencepiece_model_is_not_taken_for_a_missing_package(folder):
    (without_tokenizer(folder) / "tokenizer.model").write_bytes(b"abc" * 10)
    said = str(refusal(folder))
    assert "'tokenizer.model'" in said
    assert "pip install" not in said


def test_a_tokenizer_that_is_code_says_so(folder):
    (without_tokenizer(folder) / "qwen.tiktoken").write_text(BYTES)
    own = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    config = {"tokenizer_class": "QWenTokenizer", "auto_map": own}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    error = refusal(folder)
    assert error.reason == Reason.OWN_CODE
    assert "Python code" in str(error)


# The copy beside quantized weights


def check(folder: Path) -> None:
    MlxQuantizer(folder, name="model").check_tokenizer()


def copied(folder: Path) -> Path:
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    return copy


@pytest.mark.parametrize(
    "change",
    [
        lambda _folder: None,
        lambda folder: (folder / "chat_template.jinja").write_text(CHATTY),
        lambda folder: add_templates(folder, tool_use="{{ tools }}" + CHATTY, rag=CHATTY),
        lambda folder: edit_config(folder, chat_template=CHATTY, add_bos_token=True),
        lambda folder: add_tekken(without_tokenizer(folder)),
        lambda folder: add_templates(folder, clock="{{ strftime_now('%f') }}"),
        lambda folder: add_templates(folder, angry="{{ raise_exception('no') }}"),
        lambda folder: add_templates(folder, broken="{% for %}"),
        lambda folder: edit_config(folder, fast_tokenizer_files=["tokenizer.json"]),
    ],
    ids=["plain", "template", "named templates", "template in the config", "tekken", "clock",
         "angry template", "broken template", "versions"],
)  # fmt: skip
def test_a_tokenizer_whose_files_are_taken_over_passes(folder, change):
    change(folder)
    check(folder)


def test_a_tokenizer_in_a_folder_of_its_own_is_refused_before_any_work(folder):
    """transformers opens it there, and a quantized model would not have it."""
    name = "fast/tokenizer.5.0.0.json"
    (folder / "fast").mkdir()
    (folder / "tokenizer.json").rename(folder / name)
    edit_config(folder, fast_tokenizer_files=[name])
    assert open_tokenizer(folder).encode("a")
    with pytest.raises(UnsupportedModelError, match="not from a copy of its files"):
        check(folder)


def test_where_the_copy_falls_back_to_other_files_the_difference_is_named(folder):
    name = "fast/tokenizer.5.0.0.json"
    (folder / "fast").mkdir()
    (folder / "tokenizer.json").rename(folder / name)
    edit_config(folder, fast_tokenizer_files=[name])
    add_tekken(folder)
    with pytest.raises(UnsupportedModelError, match="differs from it in its vocabulary"):
        check(folder)


def change_tokenizer(copy: Path) -> None:
    tokenizer = Tokenizer.from_file(str(copy / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Replace("7", "8")
    tokenizer.save(str(copy / "tokenizer.json"))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (change_tokenizer, "tokens of digits"),
        (lambda copy: edit_config(copy, eos_token="<s>"), "special tokens"),
        (lambda copy: (copy / "chat_template.jinja").write_text("x"), "chat templates"),
        (lambda copy: shutil.rmtree(copy / TEMPLATES), "chat templates"),
        (lambda copy: add_templates(copy, more="x"), "chat templates"),
    ],
    ids=["digits", "eos", "default template", "lost templates", "another template"],
)
def test_a_copy_that_differs_is_refused_with_the_difference(folder, change, difference):
    (folder / "chat_template.jinja").write_text(CHATTY)
    add_templates(folder, tool_use=CHATTY)
    copy = copied(folder)
    require_same_tokenizer(open_tokenizer(folder), copy)
    change(copy)
    with pytest.raises(UnsupportedModelError, match=f"in its {difference}"):
        require_same_tokenizer(open_tokenizer(folder), copy)


def test_templates_are_compared_by_their_rendering_of_special_tokens_too(folder):
    (folder / "chat_template.jinja").write_text("{{ sep_token }}" + CHATTY)
    copy = copied(folder)
    edit_config(copy, sep_token="<s>")
    with pytest.raises(UnsupportedModelError, match="special tokens"):
        require_same_tokenizer(open_tokenizer(folder), copy)


def test_the_files_of_the_copy_are_those_of_a_quantized_model(folder):
    add_templates(folder, tool_use=CHATTY)
    (folder / "tokenizer.py").write_text("raise SystemExit")
    assert taken_over(folder) == [
        f"{TEMPLATES}/tool_use.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_model_whose_tokenizer_does_not_open_is_refused(folder):
    with pytest.raises(InvalidModelError, match="no vocabulary"):
        check(without_tokenizer(folder))
