"""Chats as a model's own chat template renders them, the same on every day and every machine.

Templates are untrusted programs. transformers runs them in Jinja's sandbox, where they may raise
any error and write any amount of text. Two of their inputs differ between runs: today's date
(`strftime_now`, in the templates of Llama 3 and Granite) and random numbers (`random`, `lipsum`).
Here the date is always the same, and random numbers are seeded anew for every chat.
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
"""Longest rendered chat; the rest is cut off."""

_NOON = datetime(2024, 7, 26, 12)  # noqa: DTZ001  the clock of a machine has no zone either
"""The date for templates; templates of Llama 3 use this day themselves where they get no date."""

_RENDERING: Any = chat_template_utils
_CLOCK = _RENDERING.datetime  # an import error here shows a rename there
_MAX_REFUSAL_CHARACTERS = 200
_PROBE = "dynquant"
# Arguments that a row may not give: they belong to `apply_chat_template`, not to the template.
_RESERVED = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"}


class ChatTemplate:
    """A tokenizer's chat template, with counts of the chats that it rendered and refused.

    Args:
        tokenizer: The model's own, as mlx-lm wraps it.

    Attributes:
        num_chats: Chats that `render` was called with.
        num_formatted: Chats that the template rendered.
        refusal: The error for the first chat that it refused, on one line; empty if it rendered all
            chats or there is no template.
        public_refusal: The same for a card. A template chooses the text of its errors and could put
            private text there; where the words are not in the template itself, this is the name of
            the error.
        date: The date that the template got, as in 2024-07-26; empty if it asked for no date.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._exists = bool(getattr(tokenizer, "has_chat_template", False))
        self._takes_parts = self._exists and self._finds_text_in_parts_only()
        self.num_chats = self.num_formatted = 0
        self.refusal = self.public_refusal = self.date = ""

    def render(self, chat: Chat) -> str | None:
        """The chat as the template renders it; None where it refuses or there is no template."""
        self.num_chats += 1
        if not self._exists:
            return None
        try:
            rendered = well_formed(self._written(chat))
            if not rendered.strip() and any(map(str.strip, chat.contents())):
                raise _WritesNothingError("It writes nothing.")  # noqa: TRY301
        except Exception as error:  # noqa: BLE001  a template may raise any error
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
        """Whether the template ignores a content that is a string, as some of vision models do.

        They loop over the parts of a content, and the parts of a string are its characters.
        """

        def finds(content: object) -> bool:
            message = {"role": "user", "content": content}
            try:
                return _PROBE in self._tokenizer.apply_chat_template([message], tokenize=False)
            except Exception:  # noqa: BLE001  it may need several messages
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
    """A template rendered a chat as an empty text."""


@contextmanager
def _same_day(asked: Callable[[], None]) -> Iterator[None]:
    """Templates get `_NOON` for the time; `asked` is called whenever a template asks for it.

    `strftime_now` reads the clock through this name of its module. An argument of that name has no
    effect: transformers passes no functions to a template.
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
    """Seed Python's generator, from which Jinja draws; restore its state afterwards."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)
