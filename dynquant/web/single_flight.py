"""A cache that asks once for concurrent requests of one key."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from dynquant.errors import DynquantError

__all__ = ["SingleFlightCache"]

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


@dataclass
class _Entry(Generic[T]):
    """The last answer of a key and how long it is fresh; its lock lets one thread ask for all.

    `failure` is the error of the last ask; `answers` then still has the answer before it.
    """

    lock: threading.Lock = field(default_factory=threading.Lock)
    answers: list[T] = field(default_factory=list)
    failure: DynquantError | None = None
    good_until: float = 0.0


class SingleFlightCache(Generic[K, T]):
    """Asks for a key at most once in `fresh_secs`, however many threads request it.

    Args:
        fresh_secs: How long an answer is fresh.
        failed_secs: How long a `DynquantError` is kept: threads that waited for it would otherwise
            each ask again, one by one. Other exceptions are bugs, and are not kept.
        max_keys: Number of keys that are kept; the least recently used goes first.
        clock: Seconds that only go forward.
    """

    def __init__(
        self,
        *,
        fresh_secs: float,
        failed_secs: float = 2.0,
        max_keys: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fresh_secs = fresh_secs
        self._failed_secs = failed_secs
        self._max_keys = max_keys
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, _Entry[T]] = OrderedDict()

    def __call__(self, key: K, ask: Callable[[], T]) -> T:
        """The answer for `key`: kept while fresh, else from `ask`, for which other threads wait."""
        entry = self._entry(key)
        with entry.lock:
            if self._clock() >= entry.good_until:
                self._renew(entry, ask)
            if entry.failure is not None:
                raise _again(entry.failure)
            return entry.answers[0]

    def known(self, key: K) -> T | None:
        """The last answer for `key`, however old, without asking; None before the first."""
        with self._lock:
            entry = self._entries.get(key)
        return entry.answers[0] if entry is not None and entry.answers else None

    def is_fresh(self, key: K) -> bool:
        """Whether `key` has a fresh answer or failure."""
        with self._lock:
            entry = self._entries.get(key)
        return entry is not None and self._clock() < entry.good_until

    def forget(self, key: K) -> None:
        """Ask again at the next request for `key`."""
        with self._lock:
            self._entries.pop(key, None)

    def _renew(self, entry: _Entry[T], ask: Callable[[], T]) -> None:
        try:
            entry.answers, entry.failure = [ask()], None
            entry.good_until = self._clock() + self._fresh_secs
        except DynquantError as error:
            entry.failure = _again(error)
            entry.good_until = self._clock() + self._failed_secs
            raise

    def _entry(self, key: K) -> _Entry[T]:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry())
            self._entries.move_to_end(key)
            while len(self._entries) > self._max_keys:
                self._entries.popitem(last=False)
        return entry


def _again(error: DynquantError) -> DynquantError:
    """A copy of an error without its cause and traceback, which may hold a token."""
    copy = type(error).__new__(type(error), *error.args)
    vars(copy).update(vars(error))
    return copy
