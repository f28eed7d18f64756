"""Submissions: their numbers, which order them, and the daily limit per requester."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa

from dynquant.errors import RetryLaterError
from dynquant.jobs import tables
from dynquant.jobs.request import JobRequest, Priority

__all__ = ["count"]

_HOUR_SECS = 3_600
_DAY_SECS = 24 * _HOUR_SECS


def count(
    connection: sa.Connection, request: JobRequest, *, now: datetime, daily_limit: int | None
) -> int:
    """Number of a new submission. The watcher has no limit, as its jobs come after all others.

    Raises:
        RetryLaterError: The requester is over the limit.
    """
    if daily_limit is not None and request.priority is Priority.PERSON:
        _check(connection, request.requester, now.timestamp(), daily_limit)
    result = connection.execute(
        sa.insert(tables.submissions)
        .values(requester=request.requester, at_secs=now.timestamp())
        .returning(tables.submissions.c.number)
    )
    return int(result.scalar_one())


def _check(connection: sa.Connection, requester: str, now_secs: float, daily_limit: int) -> None:
    submissions = tables.submissions.c
    recent = connection.execute(
        sa.select(submissions.at_secs)
        .where(
            submissions.requester == requester,
            submissions.at_secs > now_secs - _DAY_SECS,
            submissions.at_secs <= now_secs,  # ignore times of a clock that was ahead
        )
        .order_by(submissions.at_secs.desc())
        .limit(daily_limit)
    ).scalars()
    times = list(recent)
    if len(times) == daily_limit:
        hours = max(1, round((times[-1] + _DAY_SECS - now_secs) / _HOUR_SECS))
        raise RetryLaterError(
            f"You have asked for {daily_limit} models within 24 hours, which is the limit for "
            f"one person. Ask again in {hours} h."
        )
