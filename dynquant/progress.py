"""Progress of long steps, as the command line, a job and a test show it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

__all__ = ["OnStep", "Progress"]


class OnStep(Protocol):
    """Called with the name of a step whenever so many parts of it are done."""

    def __call__(self, step: str, amount: int = 1, /) -> None:
        """Count `amount` parts of `step` as done."""
        ...


class Progress(Protocol):
    """Shows how far a long step is."""

    def track(self, steps: Mapping[str, int]) -> AbstractContextManager[OnStep]:
        """A context in which `steps` (name → number of parts) are done.

        Its value is called with a step's name whenever a part of that step is done.
        """
        ...
