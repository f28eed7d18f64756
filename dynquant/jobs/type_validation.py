"""Checks that records made from untrusted JSON have values of their fields' declared types."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from types import UnionType
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

__all__ = ["require_types"]


def require_types(record: Any) -> None:
    """Check all fields of a dataclass, and of the dataclasses in it.

    Raises:
        TypeError: A value is of another type; names the field.
    """
    hints = _hints(cast("Hashable", type(record)))  # mypy does not see that a type is hashable
    for each in fields(record):
        if not _is_a(getattr(record, each.name), hints[each.name]):
            raise TypeError(f"{type(record).__name__}.{each.name}")


@lru_cache(maxsize=256)
def _hints(kind: Hashable) -> dict[str, Any]:
    return get_type_hints(kind)


def _is_a(value: object, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in {Union, UnionType}:
        return any(_is_a(value, part) for part in parts)
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_a(each, parts[0]) for each in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(
            _is_a(name, parts[0]) and _is_a(each, parts[1]) for name, each in value.items()
        )
    if kind is float:
        return type(value) in {int, float}
    if kind is int:
        return type(value) is int  # a bool is not accepted
    if not isinstance(value, kind):
        return False
    if is_dataclass(value):
        require_types(value)
    return True
