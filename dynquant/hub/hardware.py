"""The Macs on a visitor's profile, if the visitor shows hardware there.

https://huggingface.co/docs/hub/hardware
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import get_session
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)

from dynquant.errors import HubUnavailableError

__all__ = ["Mac", "ask_for_profile", "macs_on"]

_ASK_SECS = 3.0
"""An open page waits for the answer, so a slow answer is dropped."""
_MAX_BYTES = 1 << 20
"""A profile also lists the organizations of its owner, some 300 bytes each."""

_FIELD = "hardwareItems"
_APPLE = "Apple Silicon"
_MAX_ITEMS = 100
_MAX_MACS = 8
_MAX_NAME_CHARS = 40
_MAX_MEMORY_GIB = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Mac:
    """A Mac of a visitor.

    Attributes:
        name: Its chip, which its owner chose from a list of the Hub; not trusted.
        memory_gib: Unified memory.
    """

    name: str
    memory_gib: int


def ask_for_profile(endpoint: str, token: str) -> object:
    """The profile of the visitor who signed in with `token`, as JSON.

    Raises:
        httpx2.HTTPError, HfHubHTTPError: The Hub does not give it.
        HubUnavailableError: The answer is too large, too slow, or no valid JSON.
    """
    until = time.monotonic() + _ASK_SECS
    content = bytearray()
    with get_session().stream(
        "GET",
        f"{endpoint}/oauth/userinfo",
        headers=build_hf_headers(token=token, library_name="dynquant"),
        timeout=_ASK_SECS,
    ) as response:
        hf_raise_for_status(response)
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > _MAX_BYTES or time.monotonic() > until:
                raise HubUnavailableError("The Hub's answer about a profile is too long or slow.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise HubUnavailableError("The Hub's answer about a profile cannot be read.") from error


def macs_on(profile: object) -> tuple[Mac, ...]:
    """The Macs on a profile, the primary one first, the others by memory.

    Other or malformed entries are skipped. Equal Macs are listed once, as a model runs on one
    machine.
    """
    items = profile.get(_FIELD) if isinstance(profile, Mapping) else None
    if not isinstance(items, list):
        return ()
    found: dict[Mac, bool] = {}
    for item in items[:_MAX_ITEMS]:
        mac = _mac(item)
        if mac is not None:
            found[mac] = found.get(mac, False) or item.get("isPrimary") is True
    ranked = sorted(found, key=lambda mac: (not found[mac], -mac.memory_gib))
    return tuple(ranked[:_MAX_MACS])


def _mac(item: object) -> Mac | None:
    if not isinstance(item, Mapping):
        return None
    match item.get("sku"), item.get("mem"):
        case [[str(kind), str(), str(model)], int() | float() as memory] if kind == _APPLE:
            name = " ".join(model.split())
            is_name = 0 < len(name) <= _MAX_NAME_CHARS and name.isprintable()
            # A comparison with NaN is false, and True is a number.
            is_memory = not isinstance(memory, bool) and 1 <= memory <= _MAX_MEMORY_GIB
            return Mac(name=name, memory_gib=int(memory)) if is_name and is_memory else None
    return None
