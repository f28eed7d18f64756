"""Logs of jobs, line by line, and the entries of the queue that could not be read."""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa

from dynquant.jobs import tables
from dynquant.jobs.database import Database
from dynquant.jobs.ports import JobEvent, QuarantinedEntry

__all__ = ["events", "note", "quarantine", "quarantined", "trim"]

_MAX_EVENTS_PER_JOB = 500
_MAX_EVENTS = 100_000
_MAX_SENTENCE = 1_000


def note(database: Database, connection: sa.Connection, job_id: str, kind: str, text: str) -> None:
    """Write a line into the log of a job, in the transaction that changes the job."""
    connection.execute(
        sa.insert(tables.log).values(
            job_id=job_id,
            at_secs=database.now(connection).timestamp(),
            kind=kind,
            sentence=text[:_MAX_SENTENCE],
        )
    )


def events(database: Database, job_id: str, *, after: int) -> tuple[JobEvent, ...]:
    """The log of a job, oldest first; the last lines of a long log."""
    latest = (
        sa.select(tables.log)
        .where(tables.log.c.job_id == job_id, tables.log.c.number > after)
        .order_by(tables.log.c.number.desc())
        .limit(_MAX_EVENTS_PER_JOB)
    )
    with database.reading() as connection:
        rows = connection.execute(latest).all()
    return tuple(
        JobEvent(number=row.number, at=_time(row.at_secs), kind=row.kind, sentence=row.sentence)
        for row in reversed(rows)
    )


def trim(database: Database) -> None:
    """Delete the oldest lines of all logs."""
    newest = sa.select(sa.func.max(tables.log.c.number)).scalar_subquery()
    with database.writing() as connection:
        connection.execute(sa.delete(tables.log).where(tables.log.c.number <= newest - _MAX_EVENTS))


def quarantine(
    database: Database, connection: sa.Connection, job_id: str, document: str, sentence: str
) -> None:
    """Move an entry that cannot be read out of the queue, and keep it with the reason."""
    connection.execute(
        sa.insert(tables.quarantine).values(
            job_id=job_id,
            at_secs=database.now(connection).timestamp(),
            sentence=sentence[:_MAX_SENTENCE],
            document=document,
        )
    )
    connection.execute(sa.delete(tables.jobs).where(tables.jobs.c.id == job_id))


def quarantined(database: Database) -> tuple[QuarantinedEntry, ...]:
    """Entries that could not be read, oldest first."""
    query = sa.select(tables.quarantine).order_by(tables.quarantine.c.number)
    with database.reading() as connection:
        rows = connection.execute(query).all()
    return tuple(
        QuarantinedEntry(job_id=row.job_id, at=_time(row.at_secs), sentence=row.sentence)
        for row in rows
    )


def _time(secs: float) -> datetime:
    return datetime.fromtimestamp(secs, UTC)
