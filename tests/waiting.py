"""Waiting in tests: for an event, and never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["PATIENCE_SECS", "wait_until"]

PATIENCE_SECS = 300.0
"""A limit that only a hang reaches, however busy the machine is."""

_POLL_SECS = 0.01

Found = TypeVar("Found")


def wait_until(happens: Callable[[], Found], what: str = "it") -> Found:
    """Wait until `happens` returns something true, and return it.

    Raises:
        AssertionError: It does not come true; `what` names it.
    """
    until = time.monotonic() + PATIENCE_SECS
    while not (found := happens()):
        if time.monotonic() > until:
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(_POLL_SECS)
    return found
