"""The jobs in the database. Every change is a transition of `jobs.job` in one transaction."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dynquant.errors import RequestError
from dynquant.jobs import journal, submissions, tables
from dynquant.jobs.database import Database
from dynquant.jobs.job import (
    Job,
    JobState,
    Outcome,
    StepProgress,
    adopted,
    begun,
    cancelled,
    ended,
    in_step,
    lost_its_runner,
    made_again,
    progressed,
    put_back,
    retried,
)
from dynquant.jobs.job_text import job_from_text, job_to_text
from dynquant.jobs.request import JobRequest, job_id

__all__ = ["JobStore"]

_logger = logging.getLogger(__name__)

Transition = Callable[[Job, datetime], Job]


class JobStore:
    """Jobs and their changes.

    A running job is held by the session of one runner's process. The runner names its session with
    every change, and the change is dropped if another session holds the job by now.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def submit(
        self,
        request: JobRequest,
        *,
        recipe_version: int,
        needed_memory_bytes: int | None,
        daily_limit: int | None,
    ) -> Job:
        """Queue `request`, whose revision is a commit; returns the job that exists already, if any.

        Raises:
            RetryLaterError: The requester is over the limit.
        """
        assert request.revision is not None
        identity = job_id(request, revision_sha=request.revision, recipe_version=recipe_version)
        with self._database.writing() as connection:
            # One submission at a time, so that two together cannot exceed the limit.
            self._database.lock(connection, tables.submissions)
            present = self._read(connection, identity)
            if present is not None:
                return present
            now = self._database.now(connection)
            number = submissions.count(connection, request, now=now, daily_limit=daily_limit)
            job = Job(
                id=identity,
                request=request,
                recipe_version=recipe_version,
                submitted_at=now,
                needed_memory_bytes=needed_memory_bytes,
            )
            connection.execute(
                sa.insert(tables.jobs).values(
                    id=job.id,
                    requester=request.requester,
                    priority=request.priority.value,
                    served=0,
                    submission=number,
                    session=None,
                    **_columns(job),
                )
            )
            self._note(connection, job.id, "submitted", f"Asked for by {request.requester}.")
        return job

    def get(self, identity: str) -> Job:
        """The job.

        Raises:
            RequestError: There is no such job.
        """
        query = sa.select(tables.jobs.c.document).where(tables.jobs.c.id == identity)
        with self._database.reading() as connection:
            document = connection.execute(query).scalar_one_or_none()
        job = self._parsed(identity, document) if document is not None else None
        if job is None:
            raise RequestError(f"There is no job '{identity[:64]}'. List the jobs to find its id.")
        return job

    def find(
        self, *, states: Collection[JobState], requester: str | None, limit: int
    ) -> tuple[Job, ...]:
        """Jobs, the latest submission first."""
        query = sa.select(tables.jobs.c.id, tables.jobs.c.document)
        if states:
            query = query.where(tables.jobs.c.state.in_([str(state) for state in states]))
        if requester is not None:
            query = query.where(tables.jobs.c.requester == requester)
        query = query.order_by(tables.jobs.c.submission.desc()).limit(limit)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        jobs = [self._parsed(row.id, row.document) for row in rows]
        return tuple(job for job in jobs if job is not None)

    def mark(self, states: Collection[JobState]) -> tuple[int, int]:
        """The number of attempts in `states`, and the sum of their numbers, which are unique."""
        number = tables.jobs.c.submission
        query = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(number), 0))
        query = query.where(tables.jobs.c.state.in_([str(state) for state in states]))
        with self._database.reading() as connection:
            found = connection.execute(query).one()
        return int(found[0]), int(found[1])

    def take(self, identity: str, *, runner: str, session: str) -> Job | None:
        """Give a waiting job to a session; None if another runner was faster."""
        latest = sa.select(sa.func.max(tables.jobs.c.served) + 1).scalar_subquery()
        return self._change(
            identity,
            lambda job, at: begun(job, runner=runner, at=at),
            held_by=None,
            event=("taken", f"Taken by runner {runner}."),
            session=session,
            served=latest,
        )

    def report(self, identity: str, progress: StepProgress, *, session: str) -> None:
        """Write down the progress of the step that a job is in."""
        self._change(identity, lambda job, _: progressed(job, progress), held_by=session)

    def begin_step(self, identity: str, step: str, *, session: str) -> bool:
        """Write down that a step begins; False if the session has lost the job."""
        job = self._change(
            identity,
            lambda job, _: in_step(job, step),
            held_by=session,
            event=("step", f"Step {step} begins."),
        )
        return job is not None

    def give_back(
        self,
        identity: str,
        *,
        session: str,
        sentence: str,
        needed_memory_bytes: int | None = None,
    ) -> None:
        """Queue a running job again, for another runner or for this runner's next start."""
        self._change(
            identity,
            lambda job, _: put_back(
                job, sentence=sentence, needed_memory_bytes=needed_memory_bytes
            ),
            held_by=session,
            event=("put back", sentence),
            session=None,
        )

    def reassign(self, identity: str, *, session: str, to: str) -> Job | None:
        """Give the job of a dead session to another; None if `session` has lost the job."""
        return self._change(identity, lambda job, _: job, held_by=session, session=to)

    def requeue_or_fail(self, identity: str, *, session: str, memory_bytes: int) -> Job | None:
        """Queue or fail a job whose runner died; None if `session` has lost the job."""
        return self._change(
            identity,
            lambda job, at: lost_its_runner(job, at=at, memory_bytes=memory_bytes),
            held_by=session,
            event=("lost", "Its runner stopped answering."),
            session=None,
        )

    def end(
        self, identity: str, outcome: Outcome, *, session: str, busy_secs: float | None
    ) -> bool:
        """Write down the outcome of a job; False if the session has lost the job."""
        job = self._change(
            identity,
            lambda job, at: ended(job, outcome, at=at),
            held_by=session,
            event=(outcome.state.value, outcome.sentence or _named(outcome)),
            session=None,
            busy_secs=busy_secs if outcome.state is JobState.PUBLISHED else None,
        )
        return job is not None

    def cancel(self, identity: str) -> Job:
        """Cancel a job; its runner notices that it no longer holds the job.

        Raises:
            RequestError: There is no such job.
            TransitionError: It is over.
        """
        job = self._change(
            identity,
            lambda job, at: cancelled(job, at=at),
            event=("cancelled", "Cancelled."),
            session=None,
        )
        return job or self.get(identity)

    def retry(
        self, identity: str, *, request: JobRequest | None = None, daily_limit: int | None
    ) -> Job:
        """Start a new attempt, for the requester of `request` if it is given.

        Raises:
            RequestError: There is no such job.
            TransitionError: It is not over, or was published.
            RetryLaterError: The requester is over the limit.
        """
        return self._attempt_again(
            identity,
            lambda job, at: retried(job, at=at, request=request),
            event="retried",
            why="",
            daily_limit=daily_limit,
        )

    def adopt(self, identity: str, request: JobRequest) -> None:
        """Transfer a job that is not over to the requester of `request`.

        Raises:
            TransitionError: It is over.
        """
        self._change(
            identity,
            lambda job, _: adopted(job, request),
            event=("adopted", f"Asked for by {request.requester}, too, whose job it is now."),
            requester=request.requester,
        )

    def make_again(self, identity: str, request: JobRequest, *, daily_limit: int | None) -> Job:
        """Start a new attempt, for `request`, at a job whose published repos were deleted.

        Raises:
            RequestError: There is no such job.
            TransitionError: It is not published, as when a new attempt was begun meanwhile.
            RetryLaterError: The requester is over the limit.
        """
        return self._attempt_again(
            identity,
            lambda job, at: made_again(job, request, at=at),
            event="made again",
            why=" The Hub no longer has what was published.",
            daily_limit=daily_limit,
        )

    def held(self, session: str) -> frozenset[str]:
        """Ids of the jobs that a session holds."""
        query = sa.select(tables.jobs.c.id).where(tables.jobs.c.session == session)
        with self._database.reading() as connection:
            return frozenset(connection.execute(query).scalars())

    def num_running(self) -> dict[str, int]:
        """Session → number of jobs that it holds."""
        session = tables.jobs.c.session
        query = sa.select(session, sa.func.count()).where(session.is_not(None)).group_by(session)
        with self._database.reading() as connection:
            return dict(map(tuple, connection.execute(query)))

    def _attempt_again(
        self,
        identity: str,
        transition: Transition,
        *,
        event: str,
        why: str,
        daily_limit: int | None,
    ) -> Job:
        with self._database.writing() as connection:
            self._database.lock(connection, tables.submissions)
            job = self._read(connection, identity)
            if job is not None:
                now = self._database.now(connection)
                job = transition(job, now)
                request = job.request
                number = submissions.count(connection, request, now=now, daily_limit=daily_limit)
                self._write(
                    connection,
                    job,
                    requester=request.requester,
                    priority=request.priority.value,
                    submission=number,
                    busy_secs=None,
                )
                asked = f"Attempt {job.attempt} asked for by {request.requester}."
                self._note(connection, job.id, event, asked + why)
        return job or self.get(identity)

    def _change(
        self,
        identity: str,
        transition: Transition,
        *,
        held_by: str | object | None = ...,
        event: tuple[str, str] | None = None,
        **columns: Any,
    ) -> Job | None:
        """Apply `transition` to the job; None if there is none, or another session has it."""
        with self._database.writing() as connection:
            query = sa.select(tables.jobs.c.session).where(tables.jobs.c.id == identity)
            row = connection.execute(query.with_for_update()).one_or_none()
            if row is None or held_by not in (..., row.session):
                return None
            job = self._read(connection, identity)
            if job is None or (held_by is None and job.state is not JobState.WAITING):
                return None
            job = transition(job, self._database.now(connection))
            self._write(connection, job, **columns)
            if event is not None:
                self._note(connection, identity, *event)
        return job

    def _read(self, connection: sa.Connection, identity: str) -> Job | None:
        """The job, in a transaction that writes; an entry that cannot be read is quarantined."""
        query = sa.select(tables.jobs.c.document).where(tables.jobs.c.id == identity)
        document = connection.execute(query).scalar_one_or_none()
        if document is None:
            return None
        try:
            return job_from_text(document)
        except RequestError as error:
            _logger.warning("Entry %s of the queue cannot be read: %s", identity, error)
            journal.quarantine(self._database, connection, identity, document, str(error))
            return None

    def _parsed(self, identity: str, document: str) -> Job | None:
        try:
            return job_from_text(document)
        except RequestError:
            with self._database.writing() as connection:
                return self._read(connection, identity)

    @staticmethod
    def _write(connection: sa.Connection, job: Job, **columns: Any) -> None:
        connection.execute(
            sa.update(tables.jobs)
            .where(tables.jobs.c.id == job.id)
            .values(**_columns(job), **columns)
        )

    def _note(self, connection: sa.Connection, identity: str, kind: str, sentence: str) -> None:
        _logger.info("%s: %s", kind, sentence, extra={"job_id": identity})
        journal.note(self._database, connection, identity, kind, sentence)


def _named(outcome: Outcome) -> str:
    return f"Published {', '.join(each.repo_id for each in outcome.results)}."


def _columns(job: Job) -> dict[str, Any]:
    return {
        "state": job.state.value,
        "has_begun": job.started_at is not None,
        "needed_memory_bytes": job.needed_memory_bytes,
        "document": job_to_text(job),
    }
