"""Sentences on the differences between a quantized model and its source.

A confined process that has read untrusted files makes them, and another process publishes them. So
each is a template with numbers and quoted names in it, which `is_note` recognizes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dynquant.texts.markdown import clean

__all__ = ["MAX_NOTES", "counted", "is_note", "listed", "note"]

MAX_NOTES = 16
_MAX_NAMED = 5
_MAX_NAME_CHARS = 80

_TEMPLATES = {
    "vision": "The vision part of the source ({count}) is left out: this model reads text only, no "
    "images.",
    "audio": "The audio part of the source ({count}) is left out: this model reads text only, no "
    "sound.",
    "draft": "The heads of the source that draft several tokens at once (MTP, {count}) are kept as "
    "they are in 'mtp.safetensors', which stock loaders skip, for runtimes that speculate.",
    "copies": "Not used of the source: {names}, a second copy of weights; its index names other "
    "files.",
    "unread": "Left out: the tensors {names}, which are only in {names} of the source. mlx-lm does "
    "not load them from there.",
    "stored_as": "Activations of the original leave the range of float16, in which it is stored, "
    "so this model stores scales and what is not quantized in {dtype}.",
    "halved": "The original is in float32. This model stores scales and what is not quantized in "
    "bfloat16, and is compared with the original in bfloat16.",
    "source_form": "The original is stored in {form}; it was dequantized exactly.",
}
_NAME = rf"'[^']{{1,{_MAX_NAME_CHARS}}}'"
_FORM = r"(MXFP4|MXFP8|NVFP4|(float|int)\d with a scale for each [a-z]+( of [\d ×]+ weights)?)"
"""As `model.coded_weights.described` joins them."""
_FILLED = {
    "count": r"[\d,]+ tensors?",
    "names": rf"{_NAME}(, {_NAME}){{0,{_MAX_NAMED}}}( and [\d,]+ more)?",
    "dtype": "(bfloat16|float32)",
    "form": rf"{_FORM}( and {_FORM}){{0,7}}",
}
_PLACE = re.compile(r"\\\{(\w+)\\\}")
_KNOWN = re.compile(
    "|".join(
        _PLACE.sub(lambda place: _FILLED[place[1]], re.escape(template))
        for template in _TEMPLATES.values()
    )
)


def note(kind: str, *values: str) -> str:
    """The sentence `kind` with `values` in its places, in order."""
    given = iter(values)
    return re.sub(r"\{\w+\}", lambda _place: next(given), _TEMPLATES[kind])


def is_note(text: str) -> bool:
    """Whether `text` is a possible result of `note`."""
    return _KNOWN.fullmatch(text) is not None


def counted(num_tensors: int) -> str:
    """`1 tensor`, `1,234 tensors`."""
    return f"{num_tensors:,} tensor{'s' if num_tensors != 1 else ''}"


def listed(names: Sequence[str]) -> str:
    """A few names in quotes, and the number of the others."""
    short = (clean(name[:_MAX_NAME_CHARS]).replace("'", "") or "?" for name in names[:_MAX_NAMED])
    named = ", ".join(f"'{name}'" for name in short)
    more = len(names) - _MAX_NAMED
    return f"{named} and {more:,} more" if more > 0 else named
