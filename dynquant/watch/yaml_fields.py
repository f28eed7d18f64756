"""Dataclasses read from a YAML file, with line and column in every error.

A field of such a dataclass is declared by `key`. Each kind of value has its reader and its JSON
schema side by side, so the reader and the schema that editors use cannot disagree.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any, Generic, TypeVar

import yaml

from dynquant.errors import InvalidOptionError
from dynquant.report.forecast import parse_memory

__all__ = [
    "FLAG",
    "MEMORY",
    "PARAMETERS",
    "Kind",
    "Place",
    "compose",
    "count",
    "items",
    "key",
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
    """A node of a YAML file, and the file's name."""

    name: str
    node: yaml.Node

    def error(self, sentence: str) -> InvalidOptionError:
        """An error that names this place."""
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
        read: The value at a place; raises an error that names the place.
        schema: Its JSON schema.
    """

    read: Callable[[Place], T]
    schema: Mapping[str, Any]


def key(kind: Kind[Any], explanation: str, *, default: Any = MISSING, name: str = "") -> Any:
    """A field of a dataclass that is a key of the file.

    Args:
        kind: The kind of its value.
        explanation: A sentence for editors and the documentation.
        default: Of a key that may be absent.
        name: The key, where it differs from the field.
    """
    metadata = {"kind": kind, "explanation": explanation, "name": name}
    return field(default=default, metadata=metadata)


def _keys(record: Any) -> dict[str, Field[Any]]:
    return {each.metadata["name"] or each.name: each for each in fields(record)}


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


def read_fields(place: Place, record: Any, *, what: str) -> dict[str, Any]:
    """The values of a mapping by the fields of `record`; absent keys are left out.

    Args:
        place: The mapping.
        record: A dataclass whose fields are declared by `key`.
        what: The mapping in error messages: `a rule`.
    """
    keys, values = _keys(record), dict[str, Any]()
    for where, value in _pairs(place, what):
        name = str(where.node.value)
        if name not in keys:
            raise where.error(f"{what} has no key '{name[:80]}'.{_suggestion(name, keys)}")
        if keys[name].name in values:
            raise where.error(f"'{name}' is here twice. Leave one of them.")
        values[keys[name].name] = keys[name].metadata["kind"].read(value)
    for name, each in keys.items():
        if each.default is MISSING and each.name not in values:
            explanation = each.metadata["explanation"]
            raise place.error(f"{what} needs '{name}': {explanation[0].lower()}{explanation[1:]}")
    return values


def items(place: Place) -> Iterator[Place]:
    """The items of a list."""
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


def object_schema(record: Any) -> dict[str, Any]:
    """The JSON schema of a mapping with the keys of `record`."""
    keys = _keys(record)
    return {
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, each in keys.items() if each.default is MISSING],
        "properties": {name: _property(each) for name, each in keys.items()},
    }


def _property(each: Field[Any]) -> dict[str, Any]:
    default = list(each.default) if isinstance(each.default, tuple) else each.default
    shown = {"default": default} if default and default is not MISSING else {}
    return {"description": each.metadata["explanation"], **each.metadata["kind"].schema, **shown}


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
