from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from dynquant.quant.mlx import templates
from dynquant.quant.mlx.templates import ChatTemplate
from dynquant.quant.mlx.tokenizing import open_tokenizer
from dynquant.texts.documents import Chat
from tests.quant.mlx.factories import save_model

CHAT = Chat(
    messages=(
        {"role": "user", "content": "hi there"},
        {"role": "assistant", "content": "hello you"},
    )
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
LOOP = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
PARTS_ONLY = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("templates") / "model")


@pytest.fixture
def opened(model):
    """Opens a tokenizer that has the given template."""

    def opened_with(template: str | None) -> ChatTemplate:
        file = model / "chat_template.jinja"
        if template is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(template)
        return ChatTemplate(open_tokenizer(model))

    return opened_with


@pytest.fixture
def at(monkeypatch):
    """Moves the clock of this process to another zone; these two are on different days always."""

    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


def test_a_chat_is_written_by_the_template(opened):
    template = opened(LOOP)
    assert template.render(CHAT) == "[user] hi there[assistant] hello you"
    assert (template.num_chats, template.num_formatted) == (1, 1)
    assert (template.refusal, template.date) == ("", "")


def test_without_a_template_no_chat_is_written_and_nothing_was_refused(opened):
    template = opened(None)
    assert template.render(CHAT) is None
    assert (template.num_chats, template.num_formatted, template.refusal) == (1, 0, "")


TODAY = "{{ strftime_now('%A, %d %B %Y %H:%M') }} " + LOOP
IF_KNOWN = (
    "{% if strftime_now is defined %}{% set d = strftime_now('%d %b %Y') %}"
    "{% else %}{% set d = '26 Jul 2024' %}{% endif %}{{ d }} " + LOOP
)


@pytest.mark.parametrize(
    ("source", "expected"),
    [(TODAY, "Friday, 26 July 2024 12:00 [user]"), (IF_KNOWN, "26 Jul 2024 [user]")],
)
def test_a_template_gets_the_same_date_on_every_day(opened, at, source, expected):
    template = opened(source)
    real: list[str] = []
    for zone in ("Etc/GMT+12", "Etc/GMT-14"):
        at(zone)
        assert template.render(CHAT).startswith(expected)
        messages = [dict(message) for message in CHAT.messages]
        rendered = render_jinja_template([messages], chat_template=source)[0]
        real += rendered
    assert template.date == "2024-07-26"
    assert real[0] != real[1]  # transformers goes by the clock, before and afterwards


@pytest.mark.parametrize(
    "source", [LOOP, "{% if false %}{{ strftime_now('%d') }}{% endif %}" + LOOP]
)
def test_no_date_is_noted_that_the_template_did_not_ask_for(opened, source):
    template = opened(source)
    template.render(CHAT)
    assert template.date == ""


@pytest.mark.parametrize(
    "source", ["{{ [1, 2, 3, 4, 5, 6, 7] | random }}{{ range(99) | random }}", "{{ lipsum(n=1) }}"]
)
def test_random_numbers_are_the_same_for_every_chat_and_python_keeps_its_state(opened, source):
    template = opened(source)
    random.seed(1)
    first = template.render(CHAT)
    after = random.random()
    random.seed(2)
    assert template.render(CHAT) == first
    random.seed(1)
    assert random.random() == after


def test_a_refusal_is_counted_with_its_reason_on_one_line(opened):
    template = opened(
        "{{ raise_exception('Roles must\n alternate.') if messages | length < 2 }}" + LOOP
    )
    assert template.render(Chat(messages=CHAT.messages[:1])) is None
    assert template.render(CHAT) is not None
    assert template.render(Chat(messages=CHAT.messages[1:])) is None
    assert (template.num_chats, template.num_formatted) == (3, 1)
    assert template.refusal == template.public_refusal == "Roles must alternate."


def test_a_reason_that_holds_words_of_the_chat_stays_off_the_card(opened):
    """Such a template could put a private text on a public card."""
    template = opened("{{ raise_exception('No: ' + messages[0].content) }}")
    assert template.render(CHAT) is None
    assert template.refusal == "No: hi there"
    assert template.public_refusal == "TemplateError"


def test_a_long_reason_is_cut(opened):
    template = opened("{{ raise_exception('why ' * 1000) }}")
    template.render(CHAT)
    assert 190 < len(template.refusal) <= 200


def test_a_template_that_writes_nothing_has_refused(opened):
    template = opened("{% for m in messages %}{% endfor %}\n")
    assert template.render(CHAT) is None
    assert template.refusal == template.public_refusal == "It writes nothing."


def test_a_template_that_takes_parts_alone_gets_the_text_as_a_part(opened):
    """One text is a list of characters to it, none of which has a type."""
    template = opened(PARTS_ONLY)
    assert template.render(CHAT) == "[user]hi there[assistant]hello you"


def test_calls_tools_and_arguments_reach_the_template(opened):
    source = (
        "{{ tools | tojson }}|{{ enable_thinking }}|{% for m in messages %}{{ m.role }}:"
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}"
        "{% endfor %}{{ m.tool_call_id }}{{ m.reasoning_content }};{% endfor %}"
    )
    call = {"id": "1", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    chat = Chat(
        messages=(
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "tool_calls": [call], "thinking": "Oslo, then."},
            {"role": "tool", "content": "rain", "tool_call_id": "1"},
        ),
        tools=(TOOL,),
        template_kwargs={"enable_thinking": True},
    )
    tools = '[{"type": "function", "function": {"name": "weather", "parameters": {}}}]'
    assert opened(source).render(chat) == (
        f"{tools}|True|user:Weather?;assistant:OsloOslo, then.;tool:rain1;"
    )


def test_a_row_cannot_give_arguments_of_the_caller(opened):
    """Neither another template, nor another kind of answer."""
    reserved = {
        "chat_template": "mine",
        "tokenize": True,
        "conversation": [],
        "messages": [],
        "tools": [],
        "add_generation_prompt": True,
        "continue_final_message": True,
        "return_dict": True,
    }
    template = opened(LOOP)
    chat = Chat(messages=CHAT.messages, template_kwargs=reserved)
    assert template.render(chat) == "[user] hi there[assistant] hello you"


def test_a_template_changes_a_copy(opened):
    call = {"function": {"name": "f", "arguments": {}}}
    chat = Chat(messages=({"role": "assistant", "tool_calls": [call]},))
    opened("{{ messages[0].update({'role': 'x'}) }}" + LOOP).render(chat)
    assert chat.messages == ({"role": "assistant", "tool_calls": [call]},)


def test_half_a_character_of_a_template_is_replaced(opened):
    assert (
        opened("{{ '\\ud83d' }}" + LOOP).render(CHAT)
        == "\ufffd[user] hi there[assistant] hello you"
    )


def test_the_length_of_a_rendered_chat_is_bounded(opened, monkeypatch):
    monkeypatch.setattr(templates, "MAX_RENDERED_CHARACTERS", 10)
    assert opened(LOOP).render(CHAT) == "[user] hi "
