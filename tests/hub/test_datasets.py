from __future__ import annotations

import io
import os
import random
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynquant.errors import HubUnavailableError, TextError
from dynquant.hub import HubDatasets
from dynquant.texts.corpus import Corpus
from dynquant.texts.documents import Chat
from local_hub import CONVERTED, LocalHub, Repo

pytestmark = pytest.mark.hub

NAME = "alice/chats"


def parquet_bytes(columns: dict[str, list], row_group_size: int = 1000) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, row_group_size=row_group_size, compression="none")
    return sink.getvalue()


def texts(*values: str | None) -> bytes:
    return parquet_bytes({"text": list(values), "id": list(range(len(values)))})


def add_converted(hub: LocalHub, files: dict[str, bytes], **attributes) -> Repo:
    """A dataset of JSON lines that the Hub has converted to parquet."""
    repo = hub.add(NAME, {"train.jsonl": b"{}"}, kind="dataset", **attributes)
    repo.commit(files, branch=CONVERTED)
    return repo


@pytest.fixture
def corpus(datasets: HubDatasets) -> Corpus:
    return Corpus(open_dataset=datasets.open)


def test_the_conversion_by_the_hub_is_read_file_after_file(corpus, hub):
    files = {
        "default/train/0001.parquet": texts("three"),
        "default/train/0000.parquet": texts("one", "", None, "two", "  \n"),
        "default/test/0000.parquet": texts("other"),
    }
    add_converted(hub, files)
    text = corpus.open(NAME)
    assert text.name == f"{NAME}:default:train:text"
    assert list(text.documents()) == ["one", "two", "three"]
    assert list(text.documents()) == ["one", "two", "three"]


def test_chats_come_as_messages_with_role_and_content(corpus, hub):
    chat = [
        {"role": "user", "content": "hi", "extra": 1},
        {"role": "assistant", "content": "hello", "extra": 2},
    ]
    files = {"default/train/0000.parquet": parquet_bytes({"messages": [chat], "text": ["x"]})}
    add_converted(hub, files)
    text = corpus.open(NAME)
    assert text.name.endswith(":messages")
    (read,) = text.documents()
    assert read == Chat(
        messages=({"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"})
    )


def test_config_split_and_column_can_be_named(corpus, hub):
    files = {
        "en/train/0000.parquet": texts("no"),
        "de/test/0000.parquet": parquet_bytes({"story": ["ja"], "text": ["nein"]}),
    }
    add_converted(hub, files)
    text = corpus.open(f"{NAME}:de:test:story")
    assert text.name == f"{NAME}:de:test:story"
    assert list(text.documents()) == ["ja"]


def test_a_part_of_a_large_dataset_goes_by_the_name_of_its_split(corpus, hub):
    add_converted(hub, {"default/partial-train/0000.parquet": texts("much")})
    assert corpus.open(NAME).name == f"{NAME}:default:train:text"


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data/train-00000-of-00001.parquet", NAME),
        ("data/train-00000-of-00001-0123456789abcdef.parquet", f"{NAME}:default:train"),
        ("train.parquet", NAME),
        ("en/train-00000-of-00001.parquet", f"{NAME}:en"),
        ("en/train/0.parquet", NAME),
    ],
)
def test_parquet_files_of_the_repo_itself_serve_as_well(corpus, hub, path, source):
    hub.add(NAME, {path: texts("here")}, kind="dataset")
    assert list(corpus.open(source).documents()) == ["here"]


def test_what_the_conversion_lacks_may_be_in_the_repo(corpus, hub):
    files = {"data/train-00000-of-00001.parquet": texts("a"), "extra/test.parquet": texts("b")}
    repo = hub.add(NAME, files, kind="dataset")
    repo.commit({"default/train/0000.parquet": texts("converted")}, branch=CONVERTED)
    assert list(corpus.open(NAME).documents()) == ["converted"]
    assert list(corpus.open(f"{NAME}:extra:test").documents()) == ["b"]


def test_only_what_is_consumed_is_fetched(corpus, hub):
    letters = random.Random(0)
    rows = ["".join(letters.choices("abcdefgh", k=1000)) for _ in range(2000)]
    columns: dict[str, list] = {"text": rows, "junk": [os.urandom(1000) for _ in rows]}
    content = parquet_bytes(columns, row_group_size=100)
    files = {
        "default/train/0000.parquet": content,
        "default/train/0001.parquet": texts("never read"),
    }
    add_converted(hub, files)
    text = corpus.open(NAME)
    hub.requests.clear()
    assert list(islice(text.documents(), 150)) == rows[:150]
    fetched = hub.asked("GET /cdn/")
    assert all("0000.parquet" in request.path for request in fetched)
    assert sum(request.num_bytes for request in fetched) < len(content) / 10


def test_reading_stays_at_the_commit_that_was_opened(corpus, hub):
    repo = add_converted(hub, {"default/train/0000.parquet": texts("old")})
    text = corpus.open(NAME)
    repo.commit({"default/train/0000.parquet": texts("new")}, branch=CONVERTED)
    assert list(text.documents()) == ["old"]


def test_a_renamed_dataset_gets_its_name_of_today(corpus, hub):
    add_converted(hub, {"default/train/0000.parquet": texts("x")})
    hub.renamed["old/chats"] = NAME
    assert corpus.open("old/chats").name == f"{NAME}:default:train:text"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("alice/none", "There is no dataset 'alice/none'"),
        ("none", "There is no dataset 'none'"),
        ("two words", "cannot be the id"),
        (f"{NAME}:fr", "no config 'fr'. There are: de, en"),
        (NAME, "several configs.*'alice/chats:de'.*de, en"),
        (f"{NAME}:de", "several splits, and none is 'train'.*'alice/chats:de:dev'.*dev, test"),
        (f"{NAME}:de:train", "no split 'train'. There are: dev, test"),
        (f"{NAME}:en:train:no", "no column 'no'. There are: text, id"),
        (f"{NAME}:en:train:id", "neither a text nor a chat but int"),
        (f"{NAME}:en:empty", "no text in"),
        (f"{NAME}:en:odd", "neither 'messages' nor 'text'.*there are: a, b"),
        (f"{NAME}:en:broken", "cannot be read"),
        (f"{NAME}:en:train:text:more", "too many parts"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(corpus, hub, source, words):
    files = {
        "en/train/0000.parquet": texts("x"),
        "en/empty/0000.parquet": texts("", None),
        "en/odd/0000.parquet": parquet_bytes({"a": [1], "b": [2]}),
        "en/broken/0000.parquet": b"PAR1 not really PAR1",
        "de/test/0000.parquet": texts("x"),
        "de/dev/0000.parquet": texts("x"),
    }
    add_converted(hub, files)
    with pytest.raises(TextError, match=words):
        corpus.open(source)


def test_a_dataset_without_parquet_files(corpus, hub):
    hub.add(NAME, {"images/a.png": b""}, kind="dataset")
    with pytest.raises(TextError, match="no parquet files"):
        corpus.open(NAME)


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"gated": True}, "gated.*/datasets/alice/chats, .*HF_TOKEN"),
        ({"private": True}, "or it is private"),
        ({"disabled": True}, "disabled"),
    ],
)
def test_a_dataset_that_may_not_be_read(corpus, hub, attributes, words):
    add_converted(hub, {"default/train/0000.parquet": texts("x")}, **attributes)
    with pytest.raises(TextError, match=words):
        corpus.open(NAME)


def test_a_hub_that_is_down(corpus, hub, pauses):
    add_converted(hub, {"default/train/0000.parquet": texts("x")})
    hub.fail("GET /api/datasets", status=503)
    with pytest.raises(HubUnavailableError, match="status 503"):
        corpus.open(NAME)
    assert pauses == [1, 2]


def test_a_hub_that_goes_away_in_the_middle(corpus, hub):
    rows = [f"row {number}" for number in range(10)]
    add_converted(hub, {"default/train/0000.parquet": parquet_bytes({"text": rows}, 5)})
    documents = corpus.open(NAME).documents()
    next(documents)
    # Not among the statuses that the client waits for.
    hub.fail("GET /cdn/", status=501)
    with pytest.raises(HubUnavailableError, match="status 501"):
        list(documents)


def test_a_hub_that_recovers_in_the_middle(corpus, hub):
    rows = [f"row {number}" for number in range(10)]
    add_converted(hub, {"default/train/0000.parquet": parquet_bytes({"text": rows}, 5)})
    documents = corpus.open(NAME).documents()
    first = next(documents)
    hub.fail("GET /cdn/", status=503, times=1)
    assert [first, *documents] == rows
