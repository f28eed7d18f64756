"""Chats as a model's own chat template writes them, the same on every day and every machine.

Templates are programs of strangers. transformers runs them in Jinja's sandbox; what they raise
there is theirs, and so is how much they write. Two things that they may ask for differ between
runs: today's date (`strftime_now`, in those of Llama 3 and Granite) and chance (`random`,
`lipsum`). Here the date is always the same, and chance begins anew with every chat.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, tzinfo
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from dynquant.texts.documents import Chat, well_formed
from dynquant.texts.markdown import clean

__all__ = ["MAX_RENDERED_CHARACTERS", "ChatTemplate"]

MAX_RENDERED_CHARACTERS = 1 << 20
"""Of one chat; what a template writes beyond is cut off."""

_NOON = datetime(2024, 7, 26, 12)  # noqa: DTZ001  the clock of a machine has no zone either
"""What templates are told that it is. Those of Llama 3 take this day where there is no clock."""

_RENDERING: Any = chat_template_utils
_CLOCK = _RENDERING.datetime  # looked up here, so that a rename there is no silence
_MAX_REFUSAL_CHARACTERS = 200
_PROBE = "dynquant"
# Arguments that a row may not give: they are not the template's but those of its caller.
_RESERVED = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"}


class ChatTemplate:
    """A tokenizer's chat template, and an account of what it made of the chats that it was given.

    Args:
        tokenizer: The model's own, as mlx-lm wraps it.

    Attributes:
        num_chats: Chats that `render` was called with.
        num_formatted: Those that the template wrote.
        refusal: Why it did not write the first of the others, on one line; empty if it wrote all
            or there is no template.
        public_refusal: The same for a card. A template decides what its errors say, and could put
            a private text there; where the words are not in the template itself, this is the name
            of the error.
        date: The date that the template asked for, as in 2024-07-26; empty if it did not.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._exists = bool(getattr(tokenizer, "has_chat_template", False))
        self._takes_parts = self._exists and self._finds_text_in_parts_only()
        self.num_chats = self.num_formatted = 0
        self.refusal = self.public_refusal = self.date = ""

    def render(self, chat: Chat) -> str | None:
        """The chat as the template writes it; None where it does not, or there is none."""
        self.num_chats += 1
        if not self._exists:
            return None
        try:
            rendered = well_formed(self._written(chat))
            if not rendered.strip() and any(map(str.strip, chat.contents())):
                raise _WritesNothingError("It writes nothing.")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  whatever a template raises
            if not self.refusal:
                self._note_refusal(error)
            return None
        self.num_formatted += 1
        return rendered[:MAX_RENDERED_CHARACTERS]

    def _written(self, chat: Chat) -> str:
        messages = [copy.deepcopy(dict(message)) for message in chat.messages]
        if self._takes_parts:
            for message in messages:
                if "content" in message:
                    message["content"] = [{"type": "text", "text": message["content"]}]
        options = {key: each for key, each in chat.template_kwargs.items() if key not in _RESERVED}
        if chat.tools:
            options["tools"] = copy.deepcopy(list(chat.tools))
        with _same_day(self._note_date), _same_chance():
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _finds_text_in_parts_only(self) -> bool:
        """Whether the template passes over a content that is a text, as some of vision models do.

        They loop over the parts of a content, and those of a text are its characters.
        """

        def finds(content: object) -> bool:
            message = {"role": "user", "content": content}
            try:
                return _PROBE in self._tokenizer.apply_chat_template([message], tokenize=False)
            except Exception:  # noqa: BLE001  it may want more than one message
                return False

        return not finds(_PROBE) and finds([{"type": "text", "text": _PROBE}])

    def _note_date(self) -> None:
        self.date = _NOON.date().isoformat()

    def _note_refusal(self, error: Exception) -> None:
        kind, said = type(error).__name__, clean(str(error)[:_MAX_REFUSAL_CHARACTERS])
        self.refusal = said or kind
        source = clean(str(getattr(self._tokenizer, "chat_template", "")))
        is_own = isinstance(error, _WritesNothingError) or (said and said in source)
        self.public_refusal = self.refusal if is_own else kind


class _WritesNothingError(Exception):
    """A template passed over a chat without a word."""


@contextmanager
def _same_day(asked: Callable[[], None]) -> Iterator[None]:
    """Templates are told `_NOON`; `asked` is called when one wants to know.

    `strftime_now` reads the clock through this name of its module. An argument of that name would
    not do: transformers passes no function on to a template.
    """

    class Noon(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            asked()
            return _NOON.replace(tzinfo=tz)

    _RENDERING.datetime = Noon
    try:
        yield
    finally:
        _RENDERING.datetime = _CLOCK


@contextmanager
def _same_chance() -> Iterator[None]:
    """Jinja draws from Python's own generator, which goes on afterwards as if it had not."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)
