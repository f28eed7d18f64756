from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.runner.spec import open_saved_text, save_text
from dynquant.texts.documents import Chat, Text
from tests.json_values import json_values

MESSAGES = ({"role": "user", "content": "grün\u2028\0"}, {"role": "assistant", "tool_calls": [{}]})

json_objects = st.dictionaries(st.text(max_size=4), json_values, max_size=3)
chats = st.builds(
    Chat,
    messages=st.lists(json_objects, max_size=3).map(tuple),
    tools=st.lists(json_objects, max_size=2).map(tuple),
    template_kwargs=json_objects,
)


def text_of(*documents: str | Chat) -> Text:
    return Text(name="text", documents=lambda: iter(documents))


@given(st.lists(st.text() | chats, max_size=4))
def test_a_saved_text_is_what_it_was(tmp_path_factory, documents):
    path = tmp_path_factory.mktemp("spec") / "calibration.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        save_text(text_of(*documents), stream, max_chars=1 << 20)
    text = open_saved_text(path, name="org/name:messages")
    assert text.name == "org/name:messages"
    assert repr(list(text.documents())) == repr(
        documents
    )  # here the same NaN object is equal to itself
    assert repr(list(text.documents())) == repr(documents)  # and a second time


def test_chats_that_an_earlier_version_saved_are_read(tmp_path):
    """A job is not lost when its runner is updated."""
    path = tmp_path / "calibration.jsonl"
    path.write_text(json.dumps(list(MESSAGES)) + "\n" + json.dumps("plain") + "\n")
    found = list(open_saved_text(path, name="text").documents())
    assert found == [Chat(messages=MESSAGES), "plain"]


@pytest.mark.parametrize("document", ["x" * 90, Chat(messages=MESSAGES)])
def test_no_more_is_saved_than_is_needed(tmp_path, document):
    path = tmp_path / "calibration.jsonl"
    with path.open("w", encoding="utf-8") as stream:
        save_text(text_of(*[document] * 1000), stream, max_chars=1000)
    assert 1000 <= len(path.read_text()) < 1200
