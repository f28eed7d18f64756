from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest

from dynquant.jobs.type_validation import require_types


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    name: str


@dataclass(frozen=True)
class Outer:
    number: int = 1
    share: float = 0.5
    flag: bool = True
    at: datetime | None = None
    colour: Colour = Colour.RED
    inner: Inner | None = None
    inners: tuple[Inner, ...] = ()
    counts: Mapping[Colour, int] | None = None


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"share": 1},
        {"at": datetime(2026, 1, 2, tzinfo=UTC)},
        {"inner": Inner("a"), "inners": (Inner("b"), Inner("c"))},
        {"counts": {Colour.RED: 2}},
    ],
)
def test_what_fields_declare_they_may_hold(fields: dict[str, Any]):
    require_types(replace(Outer(), **fields))


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"number": 1.0}, "Outer.number"),
        ({"number": True}, "Outer.number"),
        ({"share": "0.5"}, "Outer.share"),
        ({"share": False}, "Outer.share"),
        ({"flag": 1}, "Outer.flag"),
        ({"at": "2026-01-02"}, "Outer.at"),
        ({"colour": "red"}, "Outer.colour"),
        ({"inner": {"name": "a"}}, "Outer.inner"),
        ({"inner": Inner(1)}, "Inner.name"),  # type: ignore[arg-type]
        ({"inners": [Inner("a")]}, "Outer.inners"),
        ({"inners": (Inner("a"), None)}, "Outer.inners"),
        ({"counts": {"red": 2}}, "Outer.counts"),
        ({"counts": {Colour.RED: "2"}}, "Outer.counts"),
        ({"counts": ()}, "Outer.counts"),
    ],
)
def test_anything_else_is_named(fields: dict[str, Any], name: str):
    with pytest.raises(TypeError, match=f"^{name}$"):
        require_types(replace(Outer(), **fields))
