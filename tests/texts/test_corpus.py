from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.errors import HubUnavailableError, ImagesError, TextError
from dynquant.texts import corpus as corpus_module
from dynquant.texts.corpus import Corpus
from dynquant.texts.defaults import DEFAULT_CALIBRATION, DEFAULT_EVALUATION
from dynquant.texts.documents import Chat
from tests.pictures import make_pictures, picture

MESSAGES = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
CHAT = Chat(messages=tuple(MESSAGES))
CALL = {"function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {"function": {"name": "weather"}}
TOOL_CHAT = Chat(
    messages=(
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "tool", "content": "rain", "tool_call_id": "1"},
    ),
    tools=(TOOL,),
    template_kwargs={"enable_thinking": True},
)


@dataclass(frozen=True)
class FakeDataset:
    name: str
    column: str | None
    files: tuple


class FakeDatasets:
    """Opens every name as the same parquet file."""

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.asked: list[str] = []

    def open(self, source: str) -> FakeDataset:
        self.asked.append(source)
        assert self.file is not None
        return FakeDataset("org/name:default:train", None, (lambda: self.file.open("rb"),))


@pytest.fixture
def datasets() -> FakeDatasets:
    return FakeDatasets()


@pytest.fixture
def corpus(datasets: FakeDatasets) -> Corpus:
    return Corpus(open_dataset=datasets.open)


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "README", "a.py"])
def test_a_text_file_is_one_document(corpus, tmp_path, name):
    text = corpus.open(write(tmp_path / name, "one\n\ntwo\r\nthree"))
    assert text.name == name
    assert list(text.documents()) == ["one\n\ntwo\nthree"]
    assert list(text.documents()) == ["one\n\ntwo\nthree"]


def test_a_byte_order_mark_is_no_text(corpus, tmp_path):
    text = corpus.open(write(tmp_path / "a.txt", "\ufeffone"))
    assert list(text.documents()) == ["one"]


@given(st.text(alphabet="aä😀\n", min_size=1).filter(str.strip))
def test_a_large_text_comes_in_pieces_cut_at_ends_of_lines(tmp_path_factory, content):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "_PIECE_BYTES", 5)
        path = tmp_path_factory.mktemp("corpus") / "a.txt"
        text = Corpus(open_dataset=FakeDatasets().open).open(write(path, content))
        pieces = [str(piece) for piece in text.documents()]
        assert "".join(pieces).replace("\n", "") == content.replace("\n", "")
        assert all(piece.endswith("\n") for piece in pieces[:-1])


def test_json_lines_hold_texts_or_chats(corpus, tmp_path):
    path = write(tmp_path / "a.jsonl", "\ufeff" + lines({"text": "one"}, {"text": " "}) + "\n")
    assert list(corpus.open(path).documents()) == ["one"]
    rows = lines({"messages": MESSAGES, "text": "x"}, {"messages": []}, {"messages": MESSAGES[:1]})
    text = corpus.open(write(tmp_path / "b.JSONL", rows))
    assert text.name == "b.JSONL"
    assert list(text.documents()) == [CHAT, Chat(messages=CHAT.messages[:1])]


def test_parquet_files_hold_texts_or_chats(corpus, tmp_path):
    pq.write_table(pa.table({"text": ["one", None, "two"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["x"], "messages": [MESSAGES]}), tmp_path / "b.parquet")
    assert list(corpus.open(str(tmp_path / "a.parquet")).documents()) == ["one", "two"]
    assert list(corpus.open(str(tmp_path / "b.parquet")).documents()) == [CHAT]


def test_a_chat_that_calls_tools_comes_with_all_that_its_template_reads(corpus, tmp_path):
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "rain", "tool_call_id": "1"},
        ],
        "tools": [TOOL],
        "chat_template_kwargs": {"enable_thinking": True},
    }
    text = corpus.open(write(tmp_path / "a.jsonl", lines(row, {"messages": MESSAGES})))
    assert list(text.documents()) == [TOOL_CHAT, CHAT]


def test_a_table_fills_with_nulls_what_a_message_lacks(corpus, tmp_path):
    """All structs of a column have the same keys there."""
    other = {"function": {"name": "time", "arguments": {"zone": "CET"}}}
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Weather?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "rain", "tool_call_id": "1"},
            ],
            "tools": json.dumps([TOOL]),
            "chat_template_kwargs": {"enable_thinking": True},
        }
        for call in (CALL, other)
    ]
    table = pa.Table.from_pylist(rows)
    assert table["messages"][0].as_py()[1]["tool_calls"][0]["function"]["arguments"] == {
        "city": "Oslo",
        "zone": None,
    }
    pq.write_table(table, tmp_path / "a.parquet")
    first, second = corpus.open(str(tmp_path / "a.parquet")).documents()
    assert first == TOOL_CHAT
    assert second.messages[1] == {"role": "assistant", "tool_calls": [other]}


def test_a_text_has_no_tools_though_a_column_is_called_so(corpus, tmp_path):
    pq.write_table(pa.table({"text": ["one"], "tools": [b"\xff"]}), tmp_path / "a.parquet")
    assert list(corpus.open(str(tmp_path / "a.parquet")).documents()) == ["one"]


HALF = "thanks \ud83d see you"
WHOLE = "thanks \ufffd see you"


def test_half_an_emoji_is_read_as_a_replacement_character(corpus, tmp_path):
    path = write(tmp_path / "a.jsonl", lines({"text": HALF}, {"text": "\ud83d\ude00"}))
    assert "\\ud83d" in Path(path).read_text()
    assert list(corpus.open(path).documents()) == [WHOLE, "\N{GRINNING FACE}"]
    row = {
        "messages": [
            {"role": "user", "content": HALF, "name": HALF},
            {"role": "assistant", "tool_calls": [{HALF: HALF}]},
        ],
        "tools": [{HALF: HALF}],
    }
    (chat,) = corpus.open(write(tmp_path / "b.jsonl", lines(row))).documents()
    assert chat == Chat(
        messages=(
            {"role": "user", "content": WHOLE, "name": WHOLE},
            {"role": "assistant", "tool_calls": [{WHOLE: WHOLE}]},
        ),
        tools=({WHOLE: WHOLE},),
    )


@pytest.mark.parametrize("content", [b"\xed\xa0\xbd half", b"gr\xfc\xdfe"])
def test_a_table_whose_text_is_no_unicode_is_refused_with_its_row(corpus, tmp_path, content):
    cells = pa.array([b"fine", content], pa.binary())
    text = pa.StringArray.from_buffers(2, *cells.buffers()[1:])  # unchecked, as some writers do
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(TextError, match=r"Row 2 of 'a\.parquet', 'text', is not UTF-8 text"):
        list(corpus.open(str(tmp_path / "a.parquet")).documents())


def test_a_file_name_that_is_no_unicode_can_be_told(corpus, tmp_path):
    path = tmp_path / os.fsdecode(b"gr\xfc\xdfe.txt")
    path.write_text("one")
    text = corpus.open(str(path))
    assert text.name == "gr\ufffd\ufffde.txt"
    assert list(text.documents()) == ["one"]


def test_null_characters_and_all_ends_of_lines_are_text(corpus, tmp_path):
    path = write(tmp_path / "a.txt", "a\0b\r\nc\rd\u2028e")
    assert list(corpus.open(path).documents()) == ["a\0b\nc\rd\u2028e"]
    path = write(tmp_path / "a.jsonl", '{"text": "a\\u0000b\\r\\nc"}\r\n{"text": "d"}\r\n')
    assert list(corpus.open(path).documents()) == ["a\0b\r\nc", "d"]


@given(st.text(alphabet="aä€😀\r", min_size=1, max_size=40).filter(str.strip))
def test_a_line_beyond_all_bounds_is_cut_between_characters(tmp_path_factory, content):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "_PIECE_BYTES", 5)
        patch.setattr(corpus_module, "_MAX_LINE_BYTES", 7)
        path = tmp_path_factory.mktemp("corpus") / "a.txt"
        text = Corpus(open_dataset=FakeDatasets().open).open(write(path, content))
        pieces = [str(piece) for piece in text.documents()]
    assert "".join(pieces).replace("\r", "") == content.replace("\r", "")
    assert all(len(piece.encode()) <= 5 + 7 + 4 for piece in pieces)


def test_an_object_beyond_all_bounds_is_refused_with_its_line(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_module, "_MAX_LINE_BYTES", 1 << 20)
    path = write(tmp_path / "a.jsonl", lines({"text": "x"}, {"text": "x" * (1 << 20)}))
    with pytest.raises(TextError, match=r"Line 2 of 'a\.jsonl' is longer than 1 MiB"):
        list(corpus.open(path).documents())


def test_a_row_that_is_nested_without_end_is_refused_with_its_line(corpus, tmp_path):
    deep = json.dumps({"messages": MESSAGES})[:-1] + ', "tools": ' + "[" * 500 + "]" * 500 + "}"
    path = write(tmp_path / "a.jsonl", deep)
    assert list(corpus.open(path).documents()) == [CHAT]  # no declaration of a tool
    deep = '{"messages": [{"role": "user", "content": "hi", "name": %s}]}' % ("[" * 99 + "]" * 99)
    with pytest.raises(TextError, match=r"Line 1 of .*, 'messages', is nested more than 32 deep"):
        corpus.open(write(tmp_path / "a.jsonl", deep))


def test_a_file_is_known_by_its_content_and_column_under_any_name(corpus, tmp_path):
    rows = lines({"text": "one", "story": "two"})
    names = {
        name: corpus.open(write(tmp_path / name, rows)).source_sha256
        for name in ("a.jsonl", "b.jsonl")
    }
    assert len(set(names.values())) == 1
    others = {
        corpus.open(f"{tmp_path / 'a.jsonl'}:story").source_sha256,
        corpus.open(write(tmp_path / "a.jsonl", rows + rows)).source_sha256,
    }
    assert len(others | set(names.values())) == 3


def test_a_dataset_is_known_by_its_name(tmp_path):
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    text = Corpus(open_dataset=FakeDatasets(tmp_path / "a.parquet").open).open("org/name")
    assert text.source_sha256 == ""


def test_a_column_can_be_named(corpus, tmp_path):
    path = write(tmp_path / "a.jsonl", lines({"text": "no", "story": "yes"}))
    text = corpus.open(f"{path}:story")
    assert text.name == "a.jsonl:story"  # so that the command on a card makes the same again
    assert list(text.documents()) == ["yes"]
    pq.write_table(pa.table({"text": ["no"], "story": ["yes"]}), tmp_path / "a.parquet")
    assert list(corpus.open(f"{tmp_path / 'a.parquet'}:story").documents()) == ["yes"]


def test_what_is_no_file_is_a_dataset(tmp_path):
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    datasets = FakeDatasets(tmp_path / "a.parquet")
    text = Corpus(open_dataset=datasets.open).open("org/name")
    assert datasets.asked == ["org/name"]
    assert text.name == "org/name:default:train:text"
    assert list(text.documents()) == ["one"]


@pytest.mark.parametrize(
    "source",
    [
        "./no",
        "/no",
        "~/no",
        "no.txt",
        "no.jsonl:text",
        "a/b/no",
        r"C:\no",
        "",
        " ",
        "x" * 5000 + ".md",
    ],
)
def test_what_looks_like_a_file_is_not_asked_for_on_the_hub(corpus, datasets, source):
    with pytest.raises(TextError, match="There is no file"):
        corpus.open(source)
    assert datasets.asked == []


def test_a_folder_is_no_text(corpus, tmp_path):
    with pytest.raises(TextError, match="is a folder"):
        corpus.open(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"", "no text in 'a.txt'"),
        ("a.txt", b" \n", "no text in 'a.txt'"),
        ("a.txt", b"gr\xfc\xdfe", "'a.txt' is not UTF-8 text: byte 2 "),
        ("a.txt", b"ok \xe2\x82", "byte 3 "),
        ("a.jsonl", b'{"text": "ok"}\n\xff', None),
        ("a.jsonl", b'{"text": ""}\n\xff', "byte 13 "),
        ("a.jsonl", b"", "no text in"),
        ("a.jsonl", b"\n[1]\n", "Line 2 of 'a.jsonl' is not a JSON object"),
        ("a.jsonl", b'{"text": "a"', "Line 1 of 'a.jsonl' is not a JSON object"),
        ("a.jsonl", b"[" * 100_000, "Line 1 of 'a.jsonl' is not a JSON object"),
        ("a.jsonl", b'{"a": 1, "b": 2}', "neither 'messages' nor 'text'.*there are: a, b"),
        ("a.jsonl", b'{"text": ""}\n{"x": 1}', "Line 2 .* no column 'text'. There are: x"),
        ("a.jsonl", b'{"text": 7}', "Line 1 .*, 'text', is neither a text nor a chat but int"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "is not a chat"),
        ("a.jsonl", b'{"messages": ["hi"]}', "is not a chat"),
        ("a.jsonl", b'{"messages": [{"role": "user", "content": null}]}', "is not a chat"),
        ("a.parquet", b"", "'a.parquet' cannot be read"),
        ("a.parquet", b"PAR1 no PAR1", "'a.parquet' cannot be read"),
        ("a.txt:text", None, "has no columns"),
    ],
)
def test_a_bad_file_is_told_with_its_place(corpus, tmp_path, name, content, words):
    if content is None:
        write(tmp_path / name.split(":", maxsplit=1)[0], b"x")
    else:
        write(tmp_path / name, content)
    if words is None:  # bad only after what was looked at first
        text = corpus.open(str(tmp_path / name))
        with pytest.raises(TextError, match="byte 15 "):
            list(text.documents())
        return
    with pytest.raises(TextError, match=words) as caught:
        corpus.open(str(tmp_path / name))
    assert content is None or str(tmp_path) not in str(caught.value)


def test_a_parquet_file_without_that_column(corpus, tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [2]}), tmp_path / "a.parquet")
    with pytest.raises(TextError, match=r"no column 'c'\. There are: a, b"):
        corpus.open(f"{tmp_path / 'a.parquet'}:c")
    with pytest.raises(TextError, match="neither 'messages' nor 'text'"):
        corpus.open(str(tmp_path / "a.parquet"))


def test_a_damaged_parquet_file(corpus, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["word " * 1000] * 1000}), path, use_dictionary=False)
    content = bytearray(path.read_bytes())
    content[100:2000] = bytes(1900)
    path.write_bytes(content)
    with pytest.raises(TextError, match="cannot be read"):
        list(corpus.open(str(path)).documents())


def test_a_file_that_goes_away(corpus, tmp_path):
    for name, content in {"a.txt": "x", "a.jsonl": lines({"text": "x"})}.items():
        text = corpus.open(write(tmp_path / name, content))
        (tmp_path / name).unlink()
        with pytest.raises(TextError, match="cannot be read"):
            list(text.documents())


def test_the_defaults_are_two_different_datasets():
    assert DEFAULT_CALIBRATION.split(":")[0] != DEFAULT_EVALUATION.split(":")[0]
    assert DEFAULT_CALIBRATION.count(":") == DEFAULT_EVALUATION.count(":") == 3


@pytest.mark.parametrize("allow_files", [True, False])
def test_without_the_hub_a_person_hears_of_files_of_their_own(allow_files):
    def away(_source: str) -> FakeDataset:
        raise HubUnavailableError("The Hub cannot be reached.")

    corpus = Corpus(open_dataset=away, allow_files=allow_files)
    with pytest.raises(HubUnavailableError) as raised:
        corpus.open("org/name")
    assert ("--calibration or --eval" in str(raised.value)) == allow_files


def test_images_are_read_from_a_folder_or_from_a_dataset(tmp_path):
    folder = make_pictures(tmp_path / "photos", 4)
    rows = [{"image": {"bytes": picture(i), "path": ""}} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    corpus = Corpus(open_dataset=FakeDatasets(tmp_path / "a.parquet").open)
    assert corpus.open_images(str(folder)).name == "photos"
    assert corpus.open_images("org/name").name == "org/name:default:train"


def test_images_of_a_dataset_are_decoded_where_that_is_wanted(tmp_path):
    rows = [{"image": {"bytes": b"none", "path": ""}} for i in range(4)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    corpus = Corpus(open_dataset=FakeDatasets(tmp_path / "a.parquet").open)
    assert len(corpus.open_images("org/name", decode=False).prompts) == 4
    with pytest.raises(ImagesError, match=r"'row 1 of org/name:default:train' is no PNG"):
        corpus.open_images("org/name")


def test_images_that_are_not_there_are_refused(corpus, tmp_path):
    with pytest.raises(ImagesError, match="is a file"):
        corpus.open_images(write(tmp_path / "a.png", "x"))
    for source in ("", "./photos", "photos/", "a/b/c"):
        with pytest.raises(ImagesError, match="There is no folder"):
            corpus.open_images(source)


def test_a_stranger_names_no_folder_of_this_machine(tmp_path):
    folder = make_pictures(tmp_path / "photos", 4)
    corpus = Corpus(open_dataset=FakeDatasets().open, allow_files=False)
    with pytest.raises(ImagesError, match="There is no folder"):
        corpus.open_images(str(folder))


def test_a_dataset_that_is_not_there_is_an_error_on_images(tmp_path):
    def refuse(source: str) -> FakeDataset:
        raise TextError(f"There is no dataset '{source}'.")

    with pytest.raises(ImagesError, match="no dataset 'org/name'"):
        Corpus(open_dataset=refuse).open_images("org/name")
