"""Access terms and forms of a gated repo, copied from one card to another.

The Hub reads it from the card's metadata (https://huggingface.co/docs/hub/models-gated). The
card comes from a stranger, so only fields that the Hub knows are kept, with bounded sizes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping

__all__ = ["gate"]

_TEXTS = (
    "extra_gated_heading",
    "extra_gated_prompt",
    "extra_gated_description",
    "extra_gated_button_content",
)
_QUESTIONS = "extra_gated_fields"
_EU_DISALLOWED = "extra_gated_eu_disallowed"

MAX_TEXT_CHARS = 100_000
"""Characters of a text, and of all questions. Llama 3.1's prompt with its license has 20,000."""

MAX_LABEL_CHARS = 500
MAX_ITEMS = 500
"""Entries of a form or of a choice; some forms list 250 countries."""

# Form → choice → its options → an option, which may be {"label": …, "value": …}.
_MAX_DEPTH = 4
_MAX_WHOLE = 2**53  # readers of YAML differ on larger numbers


def gate(fields: Mapping[str, object]) -> dict[str, object]:
    """The gate in the metadata of a card: only known fields, of bounded size.

    A text that is too long is left out, not cut: a part of a contract would mislead.

    Args:
        fields: Metadata of a card, as parsed YAML.
    """
    kept: dict[str, object] = {}
    for key in _TEXTS:
        if text := _text(fields.get(key), MAX_TEXT_CHARS):
            kept[key] = text
    if isinstance(questions := fields.get(_QUESTIONS), Mapping):
        form = _mapping(questions, _MAX_DEPTH)
        if form and len(str(form)) <= MAX_TEXT_CHARS:
            kept[_QUESTIONS] = form
    if isinstance(eu_disallowed := fields.get(_EU_DISALLOWED), bool):
        kept[_EU_DISALLOWED] = eu_disallowed
    return kept


def _value(raw: object, depth: int) -> object:
    """`raw` if it is a valid part of a form; else None."""
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, int):
        return raw if abs(raw) <= _MAX_WHOLE else None
    if isinstance(raw, str):
        return _text(raw, MAX_LABEL_CHARS) or None
    if depth > 0 and isinstance(raw, Mapping):
        return _mapping(raw, depth) or None
    if depth > 0 and isinstance(raw, list):
        values = (_value(each, depth - 1) for each in raw[:MAX_ITEMS])
        return [value for value in values if value is not None] or None
    return None


def _mapping(raw: Mapping[object, object], depth: int) -> dict[str, object]:
    kept = {}
    for key, content in list(raw.items())[:MAX_ITEMS]:
        label, value = _text(key, MAX_LABEL_CHARS), _value(content, depth - 1)
        if label and value is not None:
            kept[label] = value
    return kept


def _text(raw: object, max_chars: int) -> str:
    """`raw` without control and invisible characters, line breaks kept; empty if it is not text."""
    if not isinstance(raw, str) or len(raw) > max_chars:
        return ""
    lines = ("".join(map(_visible, line)).rstrip() for line in raw.splitlines())
    return "\n".join(lines).strip()


def _visible(char: str) -> str:
    return " " if unicodedata.category(char)[0] == "C" else char
