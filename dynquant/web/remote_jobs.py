"""Jobs of a Space: requests leave by the inbox, states come back with the runners' posts."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from dynquant.errors import DynquantError, RequestError
from dynquant.jobs.inbox import Inbox
from dynquant.jobs.job import Job, JobState, PublishedRepo
from dynquant.jobs.ports import JobEvent, PublishedRepos, RunnerStatus
from dynquant.jobs.published_results import are_deleted
from dynquant.jobs.request import JobRequest, check_notify_url, job_id
from dynquant.quant.recipe import RECIPE_VERSION
from dynquant.web.snapshots import Snapshots

__all__ = ["RemoteJobs"]

_MAX_SENT = 1_000
_LOOK_SECS = 20.0
"""Between two reads of the inbox for requests that are on no runner's board."""
_ON_ITS_WAY = "It is in the inbox; runners look there every few seconds."

_logger = logging.getLogger(__name__)


def _in_thread(action: Callable[[], None]) -> None:
    threading.Thread(target=action, name="inbox", daemon=True).start()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sent:
    """A request in the inbox, and its job as far as the Space knows."""

    name: str
    job: Job


class RemoteJobs:
    """A `ports.JobsPort` that keeps jobs only in memory.

    After a restart waiting jobs come back from the inbox, running and finished jobs from the next
    post of a runner.

    Args:
        inbox: Takes requests.
        snapshots: The boards that runners post.
        published: Tells whether the results of jobs are still on the Hub.
        clock: A monotonic clock, in seconds.
        in_background: Runs slow actions, such as calls of the Hub, without blocking visitors.
    """

    def __init__(
        self,
        inbox: Inbox,
        snapshots: Snapshots,
        published: PublishedRepos,
        *,
        clock: Callable[[], float] = time.monotonic,
        in_background: Callable[[Callable[[], None]], None] = _in_thread,
    ) -> None:
        self._inbox = inbox
        self._snapshots = snapshots
        self._published = published
        self._clock = clock
        self._in_background = in_background
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._sent: OrderedDict[str, _Sent] = OrderedDict()
        self._look_at_secs = -_LOOK_SECS

    def submit_anew(self, request: JobRequest) -> Job:
        """See `JobsPort`."""
        check_notify_url(request)
        identity = _identity(request)
        before = self._known().get(identity)
        # Before the lock: other visitors must not wait for the Hub.
        is_there = before is not None and self._is_published(before)
        with self._lock:  # two clicks are one request
            job = self._known().get(identity)
            if job is not None and (not job.is_over or (is_there and job == before)):
                return job
            return self._send(request)

    def get(self, job_id: str) -> Job:
        """See `JobsPort`."""
        self._look()
        job = self._known().get(job_id)
        if job is None:
            raise RequestError(
                f"There is no job '{job_id[:64]}' here. If this Space has just started, the "
                "runners will report their jobs within a minute."
            )
        return job

    def list(self, *, limit: int) -> tuple[Job, ...]:
        """See `JobsPort`."""
        self._look()
        jobs = sorted(self._known().values(), key=lambda job: job.submitted_at, reverse=True)
        return tuple(jobs[:limit])

    def cancel(self, job_id: str) -> Job:
        """See `JobsPort`."""
        job = self.get(job_id)
        if job.is_over:
            raise RequestError("This job is over, so it cannot be cancelled any more.")
        with self._lock:
            sent = self._sent.get(job_id)
            if sent is None or job_id in self._snapshots.jobs():
                raise RequestError(
                    "A runner has already shown this job, and a Space cannot reach a runner. Ask "
                    f"its operator to run 'dynquant jobs cancel {job_id}'."
                )
            # A runner that has taken it but not posted it yet finds this, and cancels the job.
            sentence = f"Cancelled by {job.request.requester}."
            self._inbox.finish(
                sent.name,
                {"state": JobState.CANCELLED, "reason_code": "cancelled", "sentence": sentence},
            )
            job = replace(
                sent.job, state=JobState.CANCELLED, reason_code="cancelled", sentence="",
                ended_at=datetime.now(UTC),
            )  # fmt: skip
            self._sent[job_id] = replace(sent, job=job)
        return job

    def retry(self, job_id: str) -> Job:
        """See `JobsPort`."""
        job = self.get(job_id)
        if not job.is_over or job.state is JobState.PUBLISHED:
            raise RequestError(
                "Only a job that was refused, failed or was cancelled can be retried."
            )
        with self._lock:
            return self._send(job.request)

    def log(self, job_id: str) -> tuple[JobEvent, ...]:
        """See `JobsPort`."""
        return self._snapshots.log(job_id)

    def runners(self) -> tuple[RunnerStatus, ...]:
        """See `JobsPort`."""
        return self._snapshots.runners()

    def _is_published(self, job: Job) -> bool:
        """Whether a job is published and its results were not deleted."""
        return job.state is JobState.PUBLISHED and not are_deleted(job, self._published)

    def _known(self) -> dict[str, Job]:
        """Every job: as a runner posted it, or else as it was sent."""
        known = {identity: sent.job for identity, sent in list(self._sent.items())}
        for identity, job in self._snapshots.jobs().items():
            mine = known.get(identity)
            if mine is None or not _is_new_attempt(mine, job):
                known[identity] = job
        return known

    def _send(self, request: JobRequest) -> Job:
        name = self._inbox.send(request)
        job = _waiting(request, at=datetime.now(UTC))
        self._remember(_Sent(name=name, job=job))
        return job

    def _remember(self, sent: _Sent) -> None:
        self._sent[sent.job.id] = sent
        self._sent.move_to_end(sent.job.id)
        while len(self._sent) > _MAX_SENT:
            self._sent.popitem(last=False)

    def _look(self) -> None:
        """Read the inbox in the background, at most every `_LOOK_SECS`."""
        if self._clock() < self._look_at_secs + _LOOK_SECS:
            return
        if self._looking.acquire(blocking=False):
            self._look_at_secs = self._clock()
            self._in_background(self._look_now)

    def _look_now(self) -> None:
        try:
            self._find_pending()
            self._find_results()
        except DynquantError as error:
            _logger.warning("The inbox cannot be read: %s", error)
        finally:
            self._looking.release()

    def _find_pending(self) -> None:
        """Remember requests that this Space sent before it was restarted."""
        names = {sent.name for sent in list(self._sent.values())}
        for entry in self._inbox.pending(skip=names):
            if entry.request is None or entry.request.revision is None:
                continue
            job = _waiting(entry.request, at=entry.sent_at)
            with self._lock:
                if job.id not in self._sent:
                    self._remember(_Sent(name=entry.name, job=job))

    def _find_results(self) -> None:
        """Read the results of requests that are on no board, such as refused requests."""
        posted = self._snapshots.jobs()
        for identity, sent in list(self._sent.items()):
            if sent.job.is_over:
                continue
            if identity in posted and not _is_new_attempt(sent.job, posted[identity]):
                continue
            if (result := self._inbox.result(sent.name)) is not None:
                with self._lock:
                    self._sent[identity] = replace(sent, job=_over(sent.job, result))


def _is_new_attempt(mine: Job, posted: Job) -> bool:
    """Whether a job was submitted again after its end, which its runner does not show yet."""
    return not mine.is_over and posted.ended_at is not None and mine.submitted_at > posted.ended_at


def _identity(request: JobRequest) -> str:
    assert request.revision is not None
    return job_id(request, revision_sha=request.revision, recipe_version=RECIPE_VERSION)


def _waiting(request: JobRequest, *, at: datetime) -> Job:
    return Job(
        id=_identity(request),
        request=request,
        recipe_version=RECIPE_VERSION,
        submitted_at=at,
        sentence=_ON_ITS_WAY,
    )


def _over(job: Job, result: Mapping[str, Any]) -> Job:
    """A job with its result; an unreadable result is a failure."""
    try:
        return replace(
            job,
            state=JobState(result["state"]),
            reason_code=str(result.get("reason_code") or ""),
            sentence=str(result.get("sentence") or "")[:1_000],
            results=tuple(PublishedRepo(**each) for each in result.get("results") or ()),
            ended_at=datetime.now(UTC),
        )
    except (KeyError, ValueError, TypeError):
        return replace(
            job,
            state=JobState.FAILED,
            reason_code="unreadable",
            sentence="Its result cannot be read. Ask for the model again.",
            ended_at=datetime.now(UTC),
        )
