"""Texts as data: well-formed Unicode, and chats from rows of a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Chat", "Document", "MalformedChatError", "Text", "chat_of", "well_formed"]

_MAX_DEPTH = 32
"""Of lists and mappings in a row; the parameters of a tool nest about ten deep."""

_MAX_SIZE = 1 << 24
"""Characters and values of a row: four times the longest contexts, which have a million tokens."""

# A message with one of these keys is not empty although its `content` is null.
_INSTEAD_OF_CONTENT = (
    "tool_calls",
    "function_call",
    "function_calls",
    "reasoning_content",
    "reasoning",
    "thinking",
    "tool_plan",
)


# Keys of a message that chat templates read: those of transformers' documentation, and of Olmo
# (functions), Cohere (tool_plan, tool_results), Kimi and GLM (tools). Other keys of a row, such as
# metadata about its author, are dropped.
_READ_BY_TEMPLATES = frozenset(
    {"role", "content", "name", "tool_call_id", "functions", "tool_results", "tools"}
).union(_INSTEAD_OF_CONTENT)


class MalformedChatError(ValueError):
    """A row is not a chat; the message continues a sentence that begins with the row's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A chat, of JSON types alone, with well-formed texts.

    Attributes:
        messages: Each has a `role`, mostly a `content`, which is text, and other keys that chat
            templates read: `tool_calls`, `tool_call_id`, `name`, `reasoning_content` and so on.
        tools: Declarations of the functions that the assistant may call.
        template_kwargs: Further arguments of the chat template, such as `enable_thinking`.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def contents(self, *, without: frozenset[str] = frozenset()) -> Iterator[str]:
        """The contents of the messages, without roles and other keys.

        Args:
            without: Messages of these roles are left out.
        """
        for message in self.messages:
            if message["role"] not in without and "content" in message:
                yield message["content"]


Document = str | Chat
"""Plain text, or a chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A text to measure on.

    Attributes:
        name: The name in the request, without folders: `heldout.txt`, or a dataset's name.
        documents: Gives a fresh pass over the documents; their texts are well-formed, see
            `texts.documents.well_formed`.
        source_sha256: Hash of the file and the name of its column; empty for a dataset, which its
            name identifies.
    """

    name: str
    documents: Callable[[], Iterator[Document]]
    source_sha256: str = ""


def well_formed(text: str) -> str:
    r"""`text` with U+FFFD for each lone half of a surrogate pair; whole pairs are joined.

    JSON can spell half a character (`"\ud83d"`), and no encoding of Unicode can store one.

    >>> well_formed("thanks \ud83d see you")
    'thanks � see you'
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def chat_of(
    messages: Sequence[Any],
    *,
    tools: object = None,
    template_kwargs: object = None,
    drop_nulls: bool = False,
) -> Chat:
    """The chat in an untrusted row.

    Of a content in parts only the texts are kept. Arguments of tool calls may be JSON in a string,
    as in answers of APIs; it is parsed, since templates expect a mapping. Tools that are declared
    neither by mappings nor by JSON of mappings are dropped.

    Args:
        messages: The row's messages.
        tools: The row's `tools`.
        template_kwargs: The row's `chat_template_kwargs`.
        drop_nulls: Whether null in a mapping means a missing key, as in tables.

    Raises:
        MalformedChatError: A message has no role or is empty, or the row is over a limit.
    """
    copied = _PlainCopy(drop_nulls=drop_nulls)
    return Chat(
        messages=tuple(_message(copied, message) for message in messages),
        tools=_tools(copied, tools),
        template_kwargs=_template_kwargs(copied, template_kwargs),
    )


class _PlainCopy:
    """Copies the values of a row as JSON types, up to a total size."""

    def __init__(self, *, drop_nulls: bool) -> None:
        self._drop_nulls = drop_nulls
        self._left = _MAX_SIZE

    def __call__(self, value: object, depth: int = 0) -> Any:
        """A copy, with null for values that JSON has no type for, such as the bytes of a picture.

        Raises:
            MalformedChatError: The row is too large, or nested too deep.
        """
        self._left -= 1 + (len(value) if isinstance(value, str) else 0)
        if self._left < 0:
            raise MalformedChatError(f"is larger than {_MAX_SIZE >> 20} Mi characters.")
        if depth > _MAX_DEPTH:
            raise MalformedChatError(f"is nested more than {_MAX_DEPTH} deep.")
        if isinstance(value, str):
            return well_formed(value)
        if isinstance(value, Mapping):
            copied = {
                self(key): self(each, depth + 1)
                for key, each in value.items()
                if isinstance(key, str)
            }
            if self._drop_nulls:
                return {key: each for key, each in copied.items() if each is not None}
            return copied
        if isinstance(value, list | tuple):
            return [self(each, depth + 1) for each in value]
        return value if isinstance(value, bool | int | float) else None


def _message(copied: _PlainCopy, raw: object) -> dict[str, Any]:
    if not isinstance(raw, Mapping) or not isinstance(raw.get("role"), str):
        raise _not_a_chat()
    read = copied({key: raw[key] for key in raw if key in _READ_BY_TEMPLATES})
    message = {key: value for key, value in read.items() if value is not None}
    content = message.get("content")
    if isinstance(content, list):
        content = message["content"] = "".join(map(_text_of_part, content))
    has_other = content is None and any(message.get(key) for key in _INSTEAD_OF_CONTENT)
    if not (isinstance(content, str) or has_other):
        raise _not_a_chat()
    if isinstance(calls := message.get("tool_calls"), list):
        message["tool_calls"] = [_with_parsed_arguments(copied, call) for call in calls]
    return message


def _text_of_part(part: object) -> str:
    """The text of a part of a content; empty for a picture or a sound."""
    text = part.get("text") if isinstance(part, dict) else part
    if not isinstance(text, str) and not isinstance(part, dict):
        raise _not_a_chat()
    return text if isinstance(text, str) else ""


def _with_parsed_arguments(copied: _PlainCopy, call: Any) -> Any:
    """The tool call, with arguments in JSON parsed to a mapping."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return call | {"function": _with_parsed_arguments(copied, call["function"])}
    arguments = _parsed(call.get("arguments"))
    return call | {"arguments": copied(arguments)} if isinstance(arguments, dict) else call


def _tools(copied: _PlainCopy, raw: object) -> tuple[dict[str, Any], ...]:
    declared = _parsed(raw)
    tools = [_parsed(tool) for tool in declared] if isinstance(declared, list | tuple) else []
    if not all(isinstance(tool, Mapping) for tool in tools):
        return ()
    return tuple(map(copied, tools))


def _template_kwargs(copied: _PlainCopy, raw: object) -> dict[str, Any]:
    found = copied(_parsed(raw))
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if key.isidentifier() and value is not None}


def _parsed(value: object) -> Any:
    """The value of JSON in a string; any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _not_a_chat() -> MalformedChatError:
    return MalformedChatError(
        "is not a chat: every message needs a 'role', and a 'content' that is text unless it "
        "calls a tool."
    )
