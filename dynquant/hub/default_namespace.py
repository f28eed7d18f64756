"""Where models are published by default."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from dynquant.hub.publishing import HubPublisher

__all__ = ["default_namespace"]


def default_namespace(publish_to: str | None) -> Callable[[], str]:
    """A function that gives `publish_to`, or else the account of this machine's token.

    The Hub is asked at most once, when the function is first called; a failure is not kept.
    """

    @lru_cache(maxsize=1)
    def namespace() -> str:
        return publish_to or HubPublisher().account().name

    return namespace
