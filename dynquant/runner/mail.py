"""What comes in from the Space and goes back to it, and who is told when a job ends.

Everything here may be done twice without harm: a request is the same job however often it is
submitted, a result is written once under its request's name, and who was told is remembered.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from dynquant.core.job import TERMINAL, Job, JobRequest, JobState
from dynquant.core.recipe import RECIPE_VERSION
from dynquant.errors import RequestError, RetryLaterError
from dynquant.outputs import read_text, write_file
from dynquant.ports import JobBoard

__all__ = ["Announcer", "Inbox", "InboxEntry", "Mailroom"]

_MAX_TOLD = 5_000

_logger = logging.getLogger(__name__)


class InboxEntry(Protocol):
    """A file in the inbox; see `hub.inbox.InboxEntry`."""

    @property
    def name(self) -> str:
        """`YYYY-MM-DD/HHMMSSffffff-…`, by the clock of who sent it."""
        ...

    @property
    def request(self) -> JobRequest | None:
        """None if the file is none."""
        ...

    @property
    def sentence(self) -> str:
        """Why it is none."""
        ...


class Inbox(Protocol):
    """The mailbox; see `hub.inbox.HubInbox`."""

    def pending(self, *, skip: Collection[str] = ()) -> Sequence[InboxEntry]:
        """Requests that have no result yet, oldest first."""
        ...

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Put a result in the place of a request."""
        ...


class Mailroom:
    """Takes requests from an inbox to the board, and results back.

    Args:
        inbox: Where requests come from.
        board: Where jobs are.
        look_up: Repo id, revision, whether a quant will do → today's name and commit.
    """

    def __init__(
        self,
        inbox: Inbox,
        board: JobBoard,
        *,
        look_up: Callable[[str, str | None, bool], tuple[str, str]],
    ) -> None:
        self._inbox = inbox
        self._board = board
        self._look_up = look_up
        self._jobs: dict[str, str] = {}

    def do_round(self) -> None:
        """Queue what is new, and answer what is over; what cannot be done now is left for later."""
        for entry in self._inbox.pending(skip=self._jobs):
            try:
                self._take(entry)
            except RetryLaterError as error:
                _logger.warning("Request %s waits: %s", entry.name, error)
        for name, job_id in list(self._jobs.items()):
            job = self._board.get(job_id)
            if job.is_over:
                self._inbox.finish(name, _result(job))
                del self._jobs[name]

    def _take(self, entry: InboxEntry) -> None:
        if entry.request is None:
            _logger.warning("Request %s was set aside: %s", entry.name, entry.sentence)
            self._inbox.finish(entry.name, _refusal("unreadable", entry.sentence))
            return
        try:
            job = self._submitted(entry.request)
        except RequestError as error:
            self._inbox.finish(entry.name, _refusal(error.reason, str(error)))
            return
        if job.is_over and job.state != JobState.PUBLISHED and _is_newer(entry, job):
            self._board.retry(job.id)  # who asks again for what had failed asks for an attempt
        self._jobs[entry.name] = job.id

    def _submitted(self, request: JobRequest) -> Job:
        name, sha = self._look_up(
            request.model, request.revision, bool(request.options.get("dequantize"))
        )
        return self._board.submit(
            replace(request, model=name), revision_sha=sha, recipe_version=RECIPE_VERSION
        )


class Announcer:
    """Tells once of every job that ended on this runner.

    Args:
        board: Where jobs are.
        runner_id: This runner; the others tell of theirs.
        memory: File that remembers who was told. Where there is none yet, what has ended by now
            counts as told.
        tell: Tells of a job.
    """

    def __init__(
        self, board: JobBoard, *, runner_id: str, memory: Path, tell: Callable[[Job], None]
    ) -> None:
        self._board = board
        self._runner_id = runner_id
        self._memory = memory
        self._tell = tell
        self._told: OrderedDict[str, None] | None = None

    def do_round(self) -> None:
        """Tell of what has ended since the last round."""
        ended = [
            job
            for job in self._board.list(states=TERMINAL, limit=_MAX_TOLD)
            if job.runner == self._runner_id and job.state != JobState.CANCELLED
        ]
        if self._told is None:
            known = read_text(self._memory)
            old = [_attempt(job) for job in ended] if known is None else known.split()
            self._told = OrderedDict.fromkeys(old)
        new = [job for job in reversed(ended) if _attempt(job) not in self._told]
        for job in new:
            self._tell(job)
            self._told[_attempt(job)] = None
        if new or not self._memory.exists():
            while len(self._told) > _MAX_TOLD:
                self._told.popitem(last=False)
            write_file(self._memory, "\n".join(self._told) + "\n")


def _attempt(job: Job) -> str:
    return f"{job.id}/{job.attempt}"


def _is_newer(entry: InboxEntry, job: Job) -> bool:
    """Whether a request was sent after the job had ended."""
    sent_at = datetime.strptime(entry.name[:17], "%Y-%m-%d/%H%M%S").replace(tzinfo=UTC)
    return job.ended_at is not None and sent_at > job.ended_at


def _refusal(reason: str, sentence: str) -> dict[str, Any]:
    return {"state": JobState.REFUSED, "reason_code": reason, "sentence": sentence}


def _result(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.id,
        "state": job.state,
        "reason_code": job.reason_code,
        "sentence": job.sentence,
        "results": [asdict(each) for each in job.results],
    }
