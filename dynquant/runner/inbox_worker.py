"""Takes requests from the inbox to the board, returns results, and announces jobs that ended.

Everything here may be repeated without harm: a request is the same job however often it is
submitted, a result is written once under its request's name, and announcements are remembered.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from dynquant.errors import RequestError, RetryLaterError
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.inbox import Inbox, InboxEntry
from dynquant.jobs.job import TERMINAL, Job, JobState
from dynquant.jobs.request import JobRequest
from dynquant.model.naming import is_ours
from dynquant.quant.recipe import RECIPE_VERSION
from dynquant.report.outputs import read_text, write_file
from dynquant.runner.inbox_policy import InboxPolicy

__all__ = ["Announcer", "FoundSource", "InboxWorker"]

_MAX_TOLD = 5_000
_MAX_OPEN = 200
"""Jobs from the inbox that wait or run at one time; further requests stay in the inbox."""
_FIRST_PAUSE_SECS, _LONGEST_PAUSE_SECS = 10.0, 600.0
"""After which a request that cannot be taken is tried again: each try asks the Hub."""
_QUARANTINED = (
    "The queue's entry of this job could not be read, so it was set aside. Ask for the model again."
)

_logger = logging.getLogger(__name__)


class FoundSource(NamedTuple):
    """The model of a request, as the Hub has it now."""

    repo_id: str
    sha: str
    is_private: bool


class InboxWorker:
    """Takes requests from an inbox to the board, and results back.

    To cancel a request, the Space writes a result with the state `cancelled`, without knowing
    whether a runner has its job already.

    Args:
        inbox: Where requests come from.
        board: Where jobs are.
        policy: Limits what a request may ask for.
        memory: File that remembers the job of each request, for requests that are cancelled while
            this runner is away.
        look_up: Repo id, revision, whether private repos of the operator count → the Hub's model
            of that name.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        inbox: Inbox,
        board: DatabaseBoard,
        *,
        policy: InboxPolicy,
        memory: Path,
        look_up: Callable[[str, str | None, bool], FoundSource],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inbox = inbox
        self._board = board
        self._policy = policy
        self._memory = memory
        self._look_up = look_up
        self._clock = clock
        # Names of requests → their jobs; → when to try again, and the pause before that.
        self._jobs = _remembered(memory)
        self._retries: dict[str, tuple[float, float]] = {}

    def do_round(self) -> None:
        """Queue new requests and return results; a request that fails for now is retried later."""
        before = dict(self._jobs)
        now = self._clock()
        waiting = {name for name, (until_secs, _) in self._retries.items() if now < until_secs}
        entries = self._inbox.pending(skip=self._jobs.keys() | waiting)
        gone = self._inbox.gone(self._jobs.keys() | self._retries.keys())
        for entry in entries:
            if len(self._jobs) >= _MAX_OPEN:
                break
            try:
                self._take(entry)
                self._retries.pop(entry.name, None)
            except RetryLaterError as error:
                self._schedule_retry(entry.name, error)
        for name in gone:
            self._forget(name)
        if self._jobs != before:
            write_file(self._memory, "".join(f"{name} {job}\n" for name, job in self._jobs.items()))
        for name, job_id in list(self._jobs.items()):
            self._return_result(name, job_id)

    def _take(self, entry: InboxEntry) -> None:
        if entry.request is None:
            _logger.warning("Request %s was set aside: %s", entry.name, entry.sentence)
            self._inbox.finish(entry.name, _refusal("unreadable", entry.sentence))
            return
        try:
            request = self._policy.admitted(entry.request)
            job = self._submitted(request)
        except RequestError as error:
            self._inbox.finish(entry.name, _refusal(error.reason, str(error)))
            return
        may_retry = job.is_over and job.state != JobState.PUBLISHED and not _is_of_operator(job)
        if may_retry and job.ended_at is not None and entry.sent_at > job.ended_at:
            # A request that was sent after its job had failed asks for another attempt.
            self._board.retry(job.id, request=request)
        self._jobs[entry.name] = job.id

    def _schedule_retry(self, name: str, error: RetryLaterError) -> None:
        if name not in self._retries:
            _logger.warning("Request %s waits: %s", name, error)
        _, pause_secs = self._retries.get(name, (0.0, _FIRST_PAUSE_SECS / 2))
        pause_secs = min(2 * pause_secs, _LONGEST_PAUSE_SECS)
        self._retries[name] = self._clock() + pause_secs, pause_secs

    def _forget(self, name: str) -> None:
        """Drop a request that the Space or another runner finished; cancel its job if asked to."""
        self._retries.pop(name, None)
        if name not in self._jobs:
            return
        try:
            result = self._inbox.result(name)
        except RequestError:  # it is damaged
            result = {}
        if result is None:
            return
        job_id = self._jobs.pop(name)
        if result.get("state") != JobState.CANCELLED or job_id in self._jobs.values():
            return  # another runner finished it, or another request is for the same job
        with suppress(RequestError):  # it is over, or set aside
            if _is_of_operator(self._board.get(job_id)):
                return
            self._board.cancel(job_id)
            _logger.info("Job %s was cancelled by its requester", job_id)

    def _return_result(self, name: str, job_id: str) -> None:
        """Replace a request with the result of its job, if the job is over."""
        try:
            job = self._board.get(job_id)
        except RequestError:
            result = _refusal("unreadable", _QUARANTINED) | {"state": JobState.FAILED}
        else:
            if not job.is_over:
                return
            result = _result(job)
        self._inbox.finish(name, result)
        del self._jobs[name]

    def _submitted(self, request: JobRequest) -> Job:
        found = self._look_up(
            request.model, request.revision, self._policy.may_name_private(request.model)
        )
        return self._board.submit(
            replace(request, model=found.repo_id),
            revision_sha=found.sha,
            source_is_private=found.is_private,
            recipe_version=RECIPE_VERSION,
        )


class Announcer:
    """Announces every job that ended on this runner, once.

    Args:
        board: Where jobs are.
        runner_id: This runner; the other runners announce their own jobs.
        memory: File that remembers the announced attempts. If it is missing, jobs that have
            ended by now count as announced.
        tell: Announces a job.
    """

    def __init__(
        self, board: DatabaseBoard, *, runner_id: str, memory: Path, tell: Callable[[Job], None]
    ) -> None:
        self._board = board
        self._runner_id = runner_id
        self._memory = memory
        self._tell = tell
        self._told: OrderedDict[str, None] | None = None
        self._mark: tuple[int, int] | None = None

    def do_round(self) -> None:
        """Announce the jobs that ended since the last round."""
        mark = self._board.mark(TERMINAL)
        if mark == self._mark:
            return
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
        self._mark = mark


def _remembered(memory: Path) -> dict[str, str]:
    """Request → job, from the lines of the file that name both."""
    lines = (read_text(memory) or "").splitlines()
    return {name: job_id for name, _, job_id in (line.partition(" ") for line in lines) if job_id}


def _is_of_operator(job: Job) -> bool:
    """Whether this machine asked for the job itself: then no entry of the inbox may change it."""
    return is_ours(job.request.requester)


def _attempt(job: Job) -> str:
    return f"{job.id}/{job.attempt}"


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
