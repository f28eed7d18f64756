"""JSON of artefacts: strict, and laid out for people to read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

__all__ = ["MALFORMED", "dumped", "number_or_null", "parsed"]

MALFORMED = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
"""Errors raised by reading a text of unexpected content."""

_WIDTH = 100  # of a line that holds a whole list or mapping


def dumped(content: Mapping[str, Any]) -> str:
    """`content` as strict JSON; a short list or mapping takes one line."""
    return _laid_out(content, "") + "\n"


def parsed(text: str, *, kind: str, version: int) -> dict[str, Any]:
    """The artefact in `text`; raises one of `MALFORMED` for another kind or version."""
    found = json.loads(text, parse_constant=_refuse)
    if not isinstance(found, dict) or (found["kind"], found["version"]) != (kind, version):
        raise ValueError(kind)
    return found


def number_or_null(value: float) -> float | None:
    """`value`, or None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None


def _laid_out(value: object, indent: str) -> str:
    line = json.dumps(value, allow_nan=False)
    if not isinstance(value, dict | list) or len(indent) + len(line) <= _WIDTH:
        return line
    inner = f"{indent} "
    if isinstance(value, dict):
        parts = [f"{json.dumps(key)}: {_laid_out(each, inner)}" for key, each in value.items()]
        return "\n".join(("{", _joined(parts, inner), indent + "}"))
    parts = [_laid_out(each, inner) for each in value]
    return "\n".join(("[", _joined(parts, inner), indent + "]"))


def _joined(parts: list[str], indent: str) -> str:
    return ",\n".join(indent + part for part in parts)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
