"""The namespace to which models are published by default."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from dynquant.hub.publishing import HubPublisher

__all__ = ["default_namespace"]


def default_namespace(publish_to: str | None) -> Callable[[], str]:
    """A function that returns `publish_to`, or else the account of this machine's token.

    The first call asks the Hub; the answer is kept, a failure is not.
    """

    @lru_cache(maxsize=1)
    def namespace() -> str:
        return publish_to or HubPublisher().account().name

    return namespace
