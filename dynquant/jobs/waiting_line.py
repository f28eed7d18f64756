"""The waiting line in the database, and how long a job takes."""

from __future__ import annotations

from statistics import median

import sqlalchemy as sa

from dynquant.jobs.database import Database
from dynquant.jobs.fair_queue import WaitingJob, in_turn
from dynquant.jobs.job import JobState
from dynquant.jobs.tables import jobs

__all__ = ["typical_secs", "waiting_line"]

_NUM_RECENT = 20
"""Finished jobs whose median duration is taken as typical."""


def waiting_line(database: Database) -> tuple[WaitingJob, ...]:
    """The waiting jobs in the order in which runners take them."""
    requester = jobs.c.requester
    waiting_query = sa.select(
        jobs.c.id,
        requester,
        jobs.c.priority,
        jobs.c.submission.label("number"),
        jobs.c.has_begun,
        jobs.c.needed_memory_bytes,
    ).where(jobs.c.state == JobState.WAITING.value)
    running_query = (
        sa.select(requester, sa.func.count())
        .where(jobs.c.state == JobState.RUNNING.value)
        .group_by(requester)
    )
    with database.reading() as connection:
        waiting = [WaitingJob(**row) for row in connection.execute(waiting_query).mappings()]
        requesters = sorted({job.requester for job in waiting})
        served_query = (
            sa.select(requester, sa.func.max(jobs.c.served))
            .where(requester.in_(requesters))
            .group_by(requester)
        )
        running = dict(map(tuple, connection.execute(running_query)))
        served = dict(map(tuple, connection.execute(served_query)))
    return in_turn(waiting, running=running, last_served=served)


def typical_secs(database: Database) -> float | None:
    """Median duration of the jobs that were published lately; None if there are none."""
    query = sa.select(jobs.c.busy_secs).where(jobs.c.busy_secs.is_not(None))
    query = query.order_by(jobs.c.served.desc()).limit(_NUM_RECENT)
    with database.reading() as connection:
        durations = connection.execute(query).scalars().all()
    return median(durations) if durations else None
