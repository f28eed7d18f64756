"""Fields of an untrusted artefact; each reader raises one of `MALFORMED`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from dynquant.quant.plan import LayerProfile, TextFacts
from dynquant.texts.images import ImageFacts

__all__ = [
    "copies_to_json",
    "image_facts",
    "images_to_json",
    "num_copies_in",
    "real",
    "real_or_nan",
    "string",
    "strings",
    "text_facts",
    "text_to_json",
    "whole",
]

_MAX_WHOLE = 2**64
_MAX_COPIES = 8


def string(raw: object) -> str:
    """A text."""
    if not isinstance(raw, str):
        raise TypeError(raw)
    return raw


def strings(raw: Mapping[str, object]) -> dict[str, str]:
    """A mapping of texts."""
    return {key: string(value) for key, value in raw.items()}


def whole(raw: object) -> int:
    """A count, small enough for the arithmetic that follows."""
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


def copies_to_json(layer: LayerProfile) -> dict[str, int]:
    """The entry on copies of a layer that is stored under several names; else none."""
    return {"num_copies": layer.num_copies} if layer.num_copies > 1 else {}


def num_copies_in(raw: Mapping[str, Any]) -> int:
    """Under how many names the layer in `raw` is stored."""
    found = whole(raw.get("num_copies", 1))
    if not 1 <= found <= _MAX_COPIES:
        raise ValueError(raw)
    return found


def text_facts(raw: Mapping[str, Any]) -> TextFacts:
    """The facts of a text in `raw`."""
    return TextFacts(
        name=string(raw["name"]),
        sha256=string(raw["sha256"]),
        num_tokens=whole(raw["num_tokens"]),
        window_tokens=whole(raw["window_tokens"]),
        chat_formatted=raw["chat_formatted"] is True,
        num_chats=whole(raw.get("num_chats", 0)),  # missing in earlier versions
        num_chats_formatted=whole(raw.get("num_chats_formatted", 0)),
        chat_refusal=string(raw.get("chat_refusal", "")),
        template_date=string(raw.get("template_date", "")),
        source_sha256=string(raw.get("source_sha256", "")),
    )


def image_facts(raw: Mapping[str, Any] | None) -> ImageFacts | None:
    """The facts of images in `raw`; None where there are none."""
    if raw is None:
        return None
    return ImageFacts(
        name=string(raw["name"]), sha256=string(raw["sha256"]), num_images=whole(raw["num_images"])
    )


def images_to_json(facts: ImageFacts | None) -> dict[str, Any] | None:
    """The fields that `image_facts` reads."""
    return None if facts is None else asdict(facts)


def text_to_json(facts: TextFacts) -> dict[str, Any]:
    """The fields that `text_facts` reads, without the sketch: `plan.json` has its 11 kB once."""
    fields = asdict(facts)
    del fields["sketch"]
    return fields
