from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.texts import documents
from dynquant.texts.documents import Chat, MalformedChatError, chat_of, well_formed
from tests.json_values import json_values

USER = {"role": "user", "content": "What is the weather in Oslo?"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("grün 😀\0\r\n", "grün 😀\0\r\n"),
        ("thanks \ud83d see you", "thanks \ufffd see you"),
        ("\ude00 and \ud83d", "\ufffd and \ufffd"),
        ("\ud83d\ude00", "😀"),
        ("\ufeff\ud83d", "\ufeff\ufffd"),
    ],
)
def test_half_a_surrogate_pair_becomes_a_replacement_character(text, expected):
    assert well_formed(text) == expected


@given(st.text(st.characters(codec=None)))
def test_a_well_formed_text_can_be_stored_and_is_well_formed_again(text):
    once = well_formed(text)
    assert once.encode().decode() == once == well_formed(once)


@given(st.text())
def test_a_text_that_is_well_formed_stays_as_it_is(text):
    assert well_formed(text) is text


def test_a_message_keeps_what_templates_read_and_nothing_else():
    row = USER | {"name": "ada", "hashed_ip": "5f3c", "created": None}
    assert chat_of([row]) == Chat(messages=(USER | {"name": "ada"},))


@pytest.mark.parametrize(
    "said",
    [
        {"tool_calls": [CALL]},
        {"reasoning_content": "Oslo is in Norway."},
        {"thinking": "Oslo is in Norway."},
        {"function_calls": "weather(city='Oslo')"},
    ],
)
def test_an_assistant_may_say_something_without_content(said):
    answer = {"role": "assistant"} | said
    for row in (answer, answer | {"content": None}):
        chat = chat_of([USER, row])
        assert chat.messages == (USER, answer)
        assert list(chat.contents()) == [USER["content"]]


@pytest.mark.parametrize(
    "message",
    [
        "hi",
        None,
        {},
        {"content": "hi"},
        {"role": 1, "content": "hi"},
        {"role": "user"},
        {"role": "user", "content": None},
        {"role": "user", "content": 5},
        {"role": "user", "content": {"text": "hi"}},
        {"role": "user", "content": [7]},
        {"role": "user", "content": b"hi"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": 5, "tool_calls": [CALL]},
    ],
)
def test_a_message_without_role_or_content_is_no_message(message):
    with pytest.raises(MalformedChatError, match=r"^is not a chat: every message needs a 'role'"):
        chat_of([USER, message])


def test_of_a_content_in_parts_the_texts_are_kept():
    parts = [
        {"type": "text", "text": "Name "},
        {"type": "image", "image": b"\x89PNG", "text": None},
        "this?",
    ]
    chat = chat_of([{"role": "user", "content": parts}])
    assert list(chat.contents()) == ["Name this?"]


def test_arguments_of_a_call_are_the_mapping_that_a_template_expects():
    as_text = {"name": "weather", "arguments": json.dumps({"city": "Os\ud83dlo"})}
    for call, read in (
        (as_text, lambda call: call["arguments"]),
        ({"function": as_text}, lambda call: call["function"]["arguments"]),
    ):
        (message,) = chat_of([{"role": "assistant", "tool_calls": [call]}]).messages
        assert read(message["tool_calls"][0]) == {"city": "Os\ufffdlo"}


@pytest.mark.parametrize("arguments", ["{", "5", "[" * 100_000, 7, None])
def test_arguments_that_are_no_mapping_stay_as_they_are(arguments):
    call = {"function": {"name": "f", "arguments": arguments}}
    (message,) = chat_of([{"role": "assistant", "tool_calls": [call]}]).messages
    assert message["tool_calls"] == [call]


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), [json.dumps(TOOL)]])
def test_tools_may_be_json_in_a_text(tools):
    assert chat_of([USER], tools=tools).tools == (TOOL,)


@pytest.mark.parametrize("tools", [None, "", "weather", ["weather"], 5, [], {"a": 1}, [TOOL, 5]])
def test_what_declares_no_tool_is_not_passed_on(tools):
    assert chat_of([USER], tools=tools) == Chat(messages=(USER,))


def test_arguments_of_the_template_are_names_with_values():
    given_ = {"enable_thinking": False, "a b": 1, "unset": None}
    both: tuple[object, ...] = (given_, json.dumps(given_))
    for raw in both:
        assert chat_of([USER], template_kwargs=raw).template_kwargs == {"enable_thinking": False}
    for raw in (None, "", "no JSON", [1], 5):
        assert chat_of([USER], template_kwargs=raw).template_kwargs == {}


def test_a_null_is_a_missing_key_in_a_table_and_a_value_elsewhere():
    call = {"function": {"name": "f", "arguments": {"unit": None, "city": "Oslo"}}}
    row = [{"role": "assistant", "tool_calls": [call]}]
    (kept,), (dropped,) = (
        chat_of(row, drop_nulls=drop).messages[0]["tool_calls"] for drop in (False, True)
    )
    assert kept["function"]["arguments"] == {"unit": None, "city": "Oslo"}
    assert dropped["function"]["arguments"] == {"city": "Oslo"}


def nested(depth: int) -> object:
    value: object = "x"
    for _ in range(depth):
        value = [value]
    return value


def test_a_row_is_bounded_in_depth_and_size(monkeypatch):
    chat_of([USER], tools=[{"a": nested(20)}])
    with pytest.raises(MalformedChatError, match=r"^is nested more than 32 deep"):
        chat_of([USER], tools=[{"a": nested(40)}])
    with pytest.raises(MalformedChatError, match=r"^is nested more than 32 deep"):
        chat_of([{"role": "assistant", "tool_calls": [nested(99)]}])
    monkeypatch.setattr(documents, "_MAX_SIZE", 1 << 20)
    for message in (
        {"role": "user", "content": "x" * (1 << 20)},
        {"role": "user", "content": "hi", "name": [0] * (1 << 20)},
    ):
        with pytest.raises(MalformedChatError, match=r"^is larger than 1 Mi characters"):
            chat_of([message])


anything = (
    json_values | json_values.map(json.dumps) | st.text(st.characters(codec=None)) | st.binary()
)
messages = st.fixed_dictionaries(
    {"role": st.text(max_size=8) | json_values, "content": anything},
    optional=dict.fromkeys(
        ("tool_calls", "thinking", "name", "other"), anything | st.lists(anything)
    ),
)


@given(st.lists(messages, max_size=3), anything, anything)
def test_any_row_is_a_chat_of_json_or_refused(rows, tools, template_kwargs):
    try:
        chat = chat_of(rows, tools=tools, template_kwargs=template_kwargs)
    except MalformedChatError:
        return
    assert len(chat.messages) == len(rows)
    for part in (*chat.messages, *chat.tools, chat.template_kwargs):
        json.dumps(part, ensure_ascii=False).encode()
