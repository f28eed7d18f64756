"""The boards that runners post to a Space: the last of each, and a log of the changes."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from dynquant.errors import RequestError
from dynquant.jobs.job import Job
from dynquant.jobs.job_text import job_from_text
from dynquant.jobs.ports import JobEvent, RunnerStatus
from dynquant.jobs.type_validation import require_types
from dynquant.watch.status import WatchStatus, status_from_json

__all__ = ["Snapshots"]

_MAX_POSTERS = 64
_MAX_JOBS = 500
_MAX_RUNNERS = 200
_MAX_EVENTS_PER_JOB = 50
_MAX_LOGS = 500
_DEAD_AFTER_SECS = 180.0
"""A runner posts at least once a minute; two of its posts may be lost."""
_LARGEST = 2**53
"""Largest number on a board: JSON readers keep whole numbers exactly up to here (9 petabytes)."""
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, RequestError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Post:
    """One board as it came in."""

    at_secs: float
    jobs: tuple[Job, ...]
    runners: tuple[RunnerStatus, ...]
    watch: WatchStatus | None


class Snapshots:
    """The boards of all runners, in memory; safe to use from several threads.

    Args:
        clock: A monotonic clock, in seconds.
        now: The time of events.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._posts: OrderedDict[str, _Post] = OrderedDict()
        self._logs: OrderedDict[str, deque[JobEvent]] = OrderedDict()
        self._num_events = 0

    def take(self, content: bytes) -> bool:
        """Keep a board that a runner posted; True if the runner has a watcher.

        Raises:
            RequestError: The content is not a board.
        """
        try:
            raw = json.loads(content, parse_constant=_number, parse_float=_number, parse_int=_whole)
            json.dumps(raw, ensure_ascii=False).encode()  # a lone surrogate could not be shown
            poster = str(raw["runner_id"])[:64]
            watch = raw.get("watch")
            post = _Post(
                at_secs=self._clock(),
                jobs=tuple(map(_job, raw["jobs"][:_MAX_JOBS])),
                runners=tuple(map(_runner, raw["runners"][:_MAX_RUNNERS])),
                watch=None if watch is None else status_from_json(watch),
            )
            require_types(post)
        except _MALFORMED as error:
            raise RequestError(
                "This is not a board of this version of dynquant. Run the same version on the "
                "Space and on every runner."
            ) from error
        with self._lock:
            self._note_changes(post)
            self._posts[poster] = post
            self._posts.move_to_end(poster)
            while len(self._posts) > _MAX_POSTERS:
                self._posts.popitem(last=False)
        return post.watch is not None

    def watch(self) -> WatchStatus | None:
        """The watcher in the latest post; None if no runner has posted a watcher lately."""
        with self._lock:
            for post in reversed(self._posts.values()):
                is_fresh = self._clock() - post.at_secs < _DEAD_AFTER_SECS
                if post.watch is not None and is_fresh:
                    return post.watch
        return None

    def jobs(self) -> dict[str, Job]:
        """Id → job, from the latest board that shows it."""
        with self._lock:
            return self._jobs()

    def runners(self) -> tuple[RunnerStatus, ...]:
        """Every runner on a board, with the age of the board added to its silence."""
        latest: dict[str, RunnerStatus] = {}
        with self._lock:
            for post in self._posts.values():
                age_secs = self._clock() - post.at_secs
                for runner in post.runners:
                    is_alive = runner.is_alive and age_secs < _DEAD_AFTER_SECS
                    latest[runner.id] = replace(
                        runner, silent_secs=runner.silent_secs + age_secs, is_alive=is_alive
                    )
        return tuple(latest[name] for name in sorted(latest))

    def log(self, job_id: str) -> tuple[JobEvent, ...]:
        """The changes of a job, oldest first."""
        with self._lock:
            return tuple(self._logs.get(job_id, ()))

    def _jobs(self) -> dict[str, Job]:
        return {job.id: job for post in self._posts.values() for job in post.jobs}

    def _note_changes(self, post: _Post) -> None:
        """Log the changes between the boards so far and a new board."""
        before = self._jobs()
        for job in post.jobs:
            old = before.get(job.id)
            if (sentence := _news(old, job)) is None:
                continue
            self._num_events += 1
            log = self._logs.setdefault(job.id, deque(maxlen=_MAX_EVENTS_PER_JOB))
            self._logs.move_to_end(job.id)
            kind = job.state.value
            log.append(
                JobEvent(number=self._num_events, at=self._now(), kind=kind, sentence=sentence)
            )
        while len(self._logs) > _MAX_LOGS:
            self._logs.popitem(last=False)


def _news(old: Job | None, new: Job) -> str | None:
    """The change of a job; None without a change, or for a job first seen after its end."""
    if old is None and new.is_over:
        return None
    if old is None or old.state != new.state:
        return new.sentence or f"It is {new.state.value}."
    step = new.progress.step if new.progress else None
    if step is not None and (old.progress is None or old.progress.step != step):
        return f"Step {step} begins."
    return None


def _number(written: str) -> float:
    if not abs(number := float(written)) <= _LARGEST:  # nor is NaN
        raise ValueError(written)
    return number


def _whole(written: str) -> int:
    _number(written)
    return int(written)


def _job(raw: Mapping[str, Any]) -> Job:
    entry = dict(raw)
    position, eta_secs = entry.pop("position", None), entry.pop("eta_secs", None)
    if not (position is None or type(position) is int):
        raise TypeError(position)
    if not (eta_secs is None or math.isfinite(eta_secs)):
        raise TypeError(eta_secs)
    return replace(job_from_text(json.dumps(entry)), position=position, eta_secs=eta_secs)


_RUNNER_FIELDS: Mapping[str, type] = defaultdict(
    lambda: int, id=str, version=str, chip=str, silent_secs=float, is_alive=bool
)


def _runner(raw: Mapping[str, Any]) -> RunnerStatus:
    return RunnerStatus(**{name: _RUNNER_FIELDS[name](value) for name, value in raw.items()})
