"""The form of the Convert page as the query of its address: to reload, come back to and share.

Fields at their defaults are left out, and so is the address to notify, which may be a secret.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import parse_qsl, urlencode

from dynquant.errors import ModelNotFoundError
from dynquant.report.quality_summary import MAC_MEMORY_GIB
from dynquant.texts.defaults import CALIBRATIONS
from dynquant.web.model_lookup import model_id
from dynquant.web.pages.choice import (
    BITS,
    BY_MEMORY,
    CONTEXTS,
    DEFAULT_CHOICE,
    DEFAULT_OTHERS,
    FLOATS,
    GROUP_SIZES,
    Choice,
    OtherFields,
)

__all__ = ["form_of", "query_of"]

_MAX_CHARS = 300
"""Of a field in the address; a sign-in keeps the whole address in a cookie."""


def query_of(choice: Choice, others: OtherFields) -> str:
    """The query that `form_of` reads, without a question mark."""
    named: dict[str, object] = {"model": (choice.model or "").strip()}
    with suppress(ModelNotFoundError):
        named["model"] = model_id(choice.model)  # of an address that was pasted
    if choice.several.strip():
        named["bpw"] = "".join(choice.several.split())
    elif choice.way == BY_MEMORY:
        named["memory"] = choice.memory_gib
    elif choice.model or choice.bpw != DEFAULT_CHOICE.bpw:
        named["bpw"] = "" if choice.bpw is None else f"{choice.bpw:g}"
    named |= {
        "context": _changed(choice.context_tokens, DEFAULT_CHOICE.context_tokens),
        "bits": _changed(_listed(BITS, choice.bits), ",".join(BITS)),
        "groups": _changed(_listed(GROUP_SIZES, choice.groups), ",".join(GROUP_SIZES)),
        "floats": _listed(FLOATS, choice.floats),
        "calibration": _changed(others.calibration, DEFAULT_OTHERS.calibration),
        "to": others.destination.strip(),
        "private": "1" if others.private else "",
    }
    found = {name: text for name, value in named.items() if (text := str(value)[:_MAX_CHARS])}
    return urlencode(found, safe="/,")


def form_of(query: str) -> tuple[Choice, OtherFields]:
    """The fields that a query names; unknown names and values count as absent."""
    named = dict(parse_qsl(query.removeprefix("?"), keep_blank_values=True))
    choice, others = DEFAULT_CHOICE, DEFAULT_OTHERS
    choice = choice._replace(model=named.get("model", "")[:_MAX_CHARS] or None)
    if "," in (bpw := named.get("bpw", "")):
        choice = choice._replace(several=bpw[:_MAX_CHARS].replace(",", ", "))
    elif (number := _number(bpw)) is not None:
        choice = choice._replace(bpw=number)
    if (memory := _one_of(MAC_MEMORY_GIB, named.get("memory"))) is not None:
        choice = choice._replace(way=BY_MEMORY, memory_gib=memory)
    choice = choice._replace(
        context_tokens=_one_of(CONTEXTS, named.get("context")) or choice.context_tokens,
        bits=_some_of(BITS, named.get("bits"), choice.bits),
        groups=_some_of(GROUP_SIZES, named.get("groups"), choice.groups),
        floats=_some_of(FLOATS, named.get("floats"), choice.floats),
    )
    calibration = named.get("calibration", "")
    return choice, others._replace(
        calibration=calibration if calibration in CALIBRATIONS else others.calibration,
        destination=named.get("to", "")[:_MAX_CHARS],
        private=named.get("private") == "1",
    )


def _changed(value: object, default: object) -> object:
    return "" if value == default else value


def _listed(values: Sequence[str], chosen: Sequence[str]) -> str:
    """The chosen values in the order of the page: Gradio gives them in the order of the clicks."""
    return ",".join(value for value in values if value in chosen)


def _number(text: str) -> float | None:
    with suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    return None


def _one_of(values: Sequence[int], text: str | None) -> int | None:
    return next((value for value in values if str(value) == text), None)


def _some_of(values: Sequence[str], text: str | None, default: list[str]) -> list[str]:
    if text is None:
        return list(default)
    wanted = text.split(",")
    return [value for value in values if value in wanted] or list(default)
