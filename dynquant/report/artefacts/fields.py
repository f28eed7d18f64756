"""Fields of an artefact, read as a stranger may have written them; `MALFORMED` if wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dynquant.quant.plan import TextFacts

__all__ = ["real", "real_or_nan", "string", "strings", "text_facts", "text_to_json", "whole"]

_MAX_WHOLE = 2**64


def string(raw: object) -> str:
    """A text."""
    if not isinstance(raw, str):
        raise TypeError(raw)
    return raw


def strings(raw: Mapping[str, object]) -> dict[str, str]:
    """A mapping of texts."""
    return {key: string(value) for key, value in raw.items()}


def whole(raw: object) -> int:
    """A count: no number that the arithmetic after it could choke on."""
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise TypeError(raw)
    if not 0 <= raw < _MAX_WHOLE:
        raise ValueError(raw)
    return raw


def real(raw: object) -> float:
    """A finite number."""
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        raise TypeError(raw)
    if not math.isfinite(raw):
        raise ValueError(raw)
    return float(raw)


def real_or_nan(raw: object) -> float:
    """A finite number, or NaN for null."""
    return math.nan if raw is None else real(raw)


def text_facts(raw: Mapping[str, Any]) -> TextFacts:
    """The facts of a text in `raw`."""
    return TextFacts(
        name=string(raw["name"]),
        sha256=string(raw["sha256"]),
        num_tokens=whole(raw["num_tokens"]),
        window_tokens=whole(raw["window_tokens"]),
        chat_formatted=raw["chat_formatted"] is True,
        num_chats=whole(raw.get("num_chats", 0)),  # earlier versions did not count
        num_chats_formatted=whole(raw.get("num_chats_formatted", 0)),
        chat_refusal=string(raw.get("chat_refusal", "")),
        template_date=string(raw.get("template_date", "")),
        source_sha256=string(raw.get("source_sha256", "")),
    )


def text_to_json(facts: TextFacts) -> dict[str, Any]:
    """The fields that `text_facts` reads, without the sketch: 11 kB that `plan.json` holds once."""
    fields = asdict(facts)
    del fields["sketch"]
    return fields
