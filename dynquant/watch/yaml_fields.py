"""Values of a YAML file, read from its nodes so that every complaint names line and column.

Each kind of value knows how it is read and what a JSON schema says of it: the reader and the
schema that editors use cannot disagree.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import yaml

from dynquant.errors import InvalidOptionError
from dynquant.report.forecast import parse_memory

__all__ = [
    "FLAG",
    "MEMORY",
    "PARAMETERS",
    "Field",
    "Kind",
    "Place",
    "compose",
    "count",
    "items",
    "list_of",
    "number",
    "object_schema",
    "read_fields",
    "text",
]

T = TypeVar("T")

_TAG = "tag:yaml.org,2002:"
_PARAMETER_UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_PARAMETERS = r"^(\d+)$|^(\d+(?:\.\d+)?) ?([KMBT])$"
_MEMORY = r"^[1-9]\d*(\.\d+)? ?[GMT]B$"


@dataclass(frozen=True, slots=True)
class Place:
    """Where in which file something stands."""

    name: str
    node: yaml.Node

    def error(self, sentence: str) -> InvalidOptionError:
        """A complaint about this place."""
        mark = self.node.start_mark
        return InvalidOptionError(
            f"{self.name}, line {mark.line + 1}, column {mark.column + 1}: {sentence}"
        )

    def at(self, node: yaml.Node) -> Place:
        """Another place in the same file."""
        return Place(self.name, node)


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """A kind of value.

    Attributes:
        read: The value at a place, or a complaint.
        schema: What JSON schema says of it.
    """

    read: Callable[[Place], T]
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """A key of a mapping. `help` is for editors; a default that is not None is shown there too."""

    kind: Kind[Any]
    help: str
    default: object = None
    is_required: bool = False


def compose(content: str, *, name: str) -> Place:
    """The root of a YAML document.

    Raises:
        InvalidOptionError: It is no YAML, or empty.
    """
    try:
        root = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = (error.problem or error.context or "something is wrong").rstrip(".")
        raise InvalidOptionError(f"{name}{where}: this is not YAML: {problem}.") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise InvalidOptionError(
            f"{name}: this is not YAML. Save it as plain UTF-8 text."
        ) from error
    if root is None:
        raise InvalidOptionError(f"{name}: the file is empty. It needs at least 'rules'.")
    return Place(name, root)


def read_fields(place: Place, fields: Mapping[str, Field], *, what: str) -> dict[str, Any]:
    """The values of a mapping; keys that are absent are left out.

    Args:
        place: Where the mapping stands.
        fields: Key → what it holds.
        what: What the mapping is, for complaints: `a rule`.
    """
    values: dict[str, Any] = {}
    for key, value in _pairs(place, what):
        known = str(key.node.value)
        if known not in fields:
            raise key.error(f"{what} has no key '{known[:80]}'.{_suggestion(known, fields)}")
        if known in values:
            raise key.error(f"'{known}' is here twice. Leave one of them.")
        values[known] = fields[known].kind.read(value)
    for name, field in fields.items():
        if field.is_required and name not in values:
            raise place.error(f"{what} needs '{name}': {field.help[0].lower()}{field.help[1:]}")
    return values


def items(place: Place) -> Iterator[Place]:
    """What a list holds."""
    if not isinstance(place.node, yaml.SequenceNode):
        raise place.error("this must be a list: [one, two], or lines that begin with '- '.")
    return map(place.at, place.node.value)


def text(*, pattern: str = "", example: str = "", max_chars: int = 200) -> Kind[str]:
    """A text; `pattern` has to match all of it."""

    def read(place: Place) -> str:
        value = _scalar(place, "str", f"a text{f' such as {example}' if example else ''}")
        if not value or len(value) > max_chars or not value.isprintable():
            raise place.error(f"this must be a text of 1 to {max_chars} printable characters.")
        if pattern and not re.fullmatch(pattern, value, re.ASCII):
            raise place.error(f"'{value}' cannot be right here. It looks like {example}.")
        return value

    schema: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": max_chars}
    return Kind(read, schema | ({"pattern": f"^(?:{pattern})$"} if pattern else {}))


def number(*, above: float | None = None, least: float = 0, most: float) -> Kind[float]:
    """A number within bounds; `above` is a bound that is not allowed itself."""

    def read(place: Place) -> float:
        value = _number(place)
        too_low = value < least if above is None else value <= above
        if too_low or value > most:
            lower = f"at least {least:g}" if above is None else f"above {above:g}"
            raise place.error(f"this must be a number {lower} and at most {most:g}.")
        return value

    lowest = {"minimum": least} if above is None else {"exclusiveMinimum": above}
    return Kind(read, {"type": "number", **lowest, "maximum": most})


def count(*, least: int = 0, most: int) -> Kind[int]:
    """A whole number within bounds."""
    numbers = number(least=least, most=most)

    def read(place: Place) -> int:
        value = numbers.read(place)
        if not value.is_integer():
            raise place.error("this must be a whole number.")
        return int(value)

    return Kind(read, {**numbers.schema, "type": "integer"})


def list_of(kind: Kind[T], *, least: int = 0, most: int = 200) -> Kind[tuple[T, ...]]:
    """A list whose items are all different."""

    def read(place: Place) -> tuple[T, ...]:
        values: list[T] = []
        for each in items(place):
            value = kind.read(each)
            if value in values:
                raise each.error("this is in the list already. Leave it out.")
            values.append(value)
        if not least <= len(values) <= most:
            raise place.error(f"this list must have {least} to {most} items.")
        return tuple(values)

    schema = {"type": "array", "items": kind.schema, "maxItems": most, "uniqueItems": True}
    return Kind(read, schema | ({"minItems": least} if least else {}))


def _read_flag(place: Place) -> bool:
    value = _scalar(place, "bool", "true or false")
    return value.lower() in {"true", "yes", "on"}


def _read_parameters(place: Place) -> int:
    value = _scalar_text(place)
    found = re.match(_PARAMETERS, value, re.ASCII)
    if found is None:
        raise place.error(f"'{value[:80]}' is no number of parameters. Write it like 8B or 350M.")
    if found[1]:
        return int(found[1])
    return round(float(found[2]) * _PARAMETER_UNITS[found[3]])


def _read_memory(place: Place) -> int:
    value = _scalar_text(place)
    if not re.match(_MEMORY, value, re.ASCII):
        raise place.error(f"'{value[:80]}' is no memory size. Write it like 16GB.")
    return parse_memory(value)


FLAG: Kind[bool] = Kind(_read_flag, {"type": "boolean"})

PARAMETERS: Kind[int] = Kind(
    _read_parameters,
    {"type": ["integer", "string"], "pattern": _PARAMETERS, "minimum": 0},
)
"""A number of parameters, such as 8B or 350M."""

MEMORY: Kind[int] = Kind(_read_memory, {"type": "string", "pattern": _MEMORY})
"""Memory of a machine in bytes, such as 16GB."""


def object_schema(fields: Mapping[str, Field]) -> dict[str, Any]:
    """What JSON schema says of a mapping with `fields`."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, field in fields.items() if field.is_required],
        "properties": {name: _property(field) for name, field in fields.items()},
    }


def _property(field: Field) -> dict[str, Any]:
    default = {} if field.default is None else {"default": field.default}
    return {"description": field.help, **field.kind.schema, **default}


def _pairs(place: Place, what: str) -> Iterator[tuple[Place, Place]]:
    if not isinstance(place.node, yaml.MappingNode):
        raise place.error(f"{what} must be lines of the form 'key: value'.")
    for key, value in place.node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise place.at(key).error("a key must be a word.")
        yield place.at(key), place.at(value)


def _scalar(place: Place, tag: str, what: str) -> str:
    if not isinstance(place.node, yaml.ScalarNode) or place.node.tag != _TAG + tag:
        hint = " Put it in quotes." if tag == "str" and _is_scalar(place.node) else ""
        raise place.error(f"this must be {what}.{hint}")
    return str(place.node.value)


def _scalar_text(place: Place) -> str:
    if not isinstance(place.node, yaml.ScalarNode):
        raise place.error("this must be one value, not a list or a mapping.")
    return str(place.node.value).strip()


def _is_scalar(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag != f"{_TAG}null"


def _number(place: Place) -> float:
    node = place.node
    value = math.nan
    if isinstance(node, yaml.ScalarNode) and node.tag in {f"{_TAG}int", f"{_TAG}float"}:
        try:
            value = float(node.value.replace("_", ""))
        except ValueError:  # 0x10 and 1:30 are numbers to YAML alone
            value = math.nan
    if not math.isfinite(value):
        raise place.error("this must be a number, such as 4.5.")
    return value


def _suggestion(key: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f" Did you mean '{near[0]}'?" if near else f" It may have: {', '.join(sorted(known))}."
