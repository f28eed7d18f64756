"""Answers that all visitors share, so that many of them cost no more than one."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

__all__ = ["Shared"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    """What was answered, and until when that is good. Whoever asks first asks for all."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    answers: list[T] = field(default_factory=list)
    good_until: float = 0.0


class Shared(Generic[K, T]):
    """Asks for something at most once in `fresh_secs`, however many want to know.

    An error is not kept: the next one asks again.

    Args:
        fresh_secs: How long an answer is good.
        max_keys: Of so many keys answers are kept; the least recently wanted goes.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        *,
        fresh_secs: float,
        max_keys: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fresh_secs = fresh_secs
        self._max_keys = max_keys
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, _Entry[T]] = OrderedDict()

    def __call__(self, key: K, ask: Callable[[], T]) -> T:
        """The answer for `key`: a fresh one, or what `ask` says. Others wait while it is asked."""
        entry = self._entry(key)
        with entry.lock:
            if not entry.answers or self._clock() >= entry.good_until:
                entry.answers = [ask()]
                entry.good_until = self._clock() + self._fresh_secs
            return entry.answers[0]

    def known(self, key: K) -> T | None:
        """The last answer for `key` without asking; None if there is none."""
        with self._lock:
            entry = self._entries.get(key)
        return entry.answers[0] if entry is not None and entry.answers else None

    def is_fresh(self, key: K) -> bool:
        """Whether the last answer for `key` is still good."""
        with self._lock:
            entry = self._entries.get(key)
        return entry is not None and self._clock() < entry.good_until

    def forget(self, key: K) -> None:
        """Ask again when `key` is wanted next."""
        with self._lock:
            self._entries.pop(key, None)

    def _entry(self, key: K) -> _Entry[T]:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_keys:
                self._entries.popitem(last=False)
        return entry
