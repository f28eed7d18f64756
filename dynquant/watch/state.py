"""The watcher's state, in tables of its own beside the jobs.

Every method is one transaction. A runner that dies between two of them leaves a state from which
the next sweep continues: a decision is stored before its job is queued, and the position in the
Hub's lists is stored last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from dynquant.errors import InvalidOptionError
from dynquant.jobs.database import Database
from dynquant.jobs.request import request_from_json, request_to_json
from dynquant.watch import tables
from dynquant.watch.records import (
    Cursor,
    Mention,
    Order,
    PostponedModel,
    SeenModel,
    SweepReport,
    report_from_json,
    report_to_json,
)
from dynquant.watch.skips import Skip

__all__ = ["DatabaseWatchState"]

_MAX_SEEN = 200_000
_MAX_POSTPONED = 20_000
_MAX_REPORTS = 1_000
_ORDERS_FOR_SECS = 7 * 24 * 3600.0
_LOCK = 0x64796E77  # names the PostgreSQL lock under which tables are made; an arbitrary constant


class DatabaseWatchState:
    """The watcher's state in the database of the jobs."""

    def __init__(self, url: str) -> None:
        """Open the database, and make missing tables.

        Raises:
            InvalidOptionError: Not a database that this version of dynquant can use.
            RetryLaterError: It does not answer.
        """
        self._database = Database(url)
        try:
            self._make_tables()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    # The lease of the process that sweeps.

    def begin(
        self, holder: str, *, lease_secs: float, is_due: Callable[[datetime | None, datetime], bool]
    ) -> datetime | None:
        """Take the lease to sweep; the database's time if this caller got it.

        Args:
            holder: Names the caller; no other process has the same name.
            lease_secs: Length of the lease; `renew` extends it.
            is_due: Given the start of the last finished sweep and the current time, whether another
                sweep is due.
        """
        with self._database.writing() as connection:
            now = self._database.now(connection)
            row = connection.execute(sa.select(tables.lease).with_for_update()).one()
            is_held = row.holder not in {None, holder} and row.held_until_secs > now.timestamp()
            if row.is_paused or is_held or not is_due(_time(row.swept_at_secs), now):
                return None
            taken = {"holder": holder, "held_until_secs": now.timestamp() + lease_secs}
            connection.execute(sa.update(tables.lease).values(**taken))
        return now

    def renew(self, holder: str, *, lease_secs: float) -> bool:
        """Extend the lease; False if another process has it, or the watcher was paused."""
        with self._database.writing() as connection:
            until_secs = self._database.now(connection).timestamp() + lease_secs
            result = connection.execute(
                sa.update(tables.lease)
                .where(tables.lease.c.holder == holder, tables.lease.c.is_paused.is_(False))
                .values(held_until_secs=until_secs)
            )
            return result.rowcount == 1

    def end(self, holder: str, *, began_at: datetime) -> None:
        """Return the lease after a finished sweep."""
        self._change(
            sa.update(tables.lease)
            .where(tables.lease.c.holder == holder)
            .values(holder=None, swept_at_secs=began_at.timestamp())
        )

    @property
    def is_paused(self) -> bool:
        """Whether no sweep begins until the watcher is resumed."""
        return bool(self._rows(sa.select(tables.lease.c.is_paused))[0].is_paused)

    @property
    def is_sweeping(self) -> bool:
        """Whether a process holds the lease to sweep."""
        with self._database.reading() as connection:
            now = self._database.now(connection)
            row = connection.execute(sa.select(tables.lease)).one()
        return row.holder is not None and row.held_until_secs > now.timestamp()

    def set_paused(self, paused: bool) -> None:  # noqa: FBT001
        """Pause the watcher, or resume it."""
        self._change(sa.update(tables.lease).values(is_paused=paused))

    # The position in the Hub's lists.

    def cursor(self) -> Cursor | None:
        """The position at which the last sweep ended; None before the first."""
        row = self._rows(sa.select(tables.lease))[0]
        since, created = _time(row.since_secs), _time(row.created_secs)
        modified = _time(row.modified_secs)
        if since is None or created is None or modified is None:
            return None
        return Cursor(since=since, created=created, modified=modified)

    def save_cursor(self, cursor: Cursor) -> None:
        """Store the position in the lists."""
        self._change(
            sa.update(tables.lease).values(
                since_secs=cursor.since.timestamp(),
                created_secs=cursor.created.timestamp(),
                modified_secs=cursor.modified.timestamp(),
            )
        )

    # Models.

    def seen(self, repo_id: str) -> SeenModel | None:
        """The last close look at a model; None if there was no such look."""
        query = sa.select(tables.seen_models).where(tables.seen_models.c.repo_id == repo_id)
        return next(map(_seen_model, self._rows(query)), None)

    def latest(self, *, limit: int) -> tuple[SeenModel, ...]:
        """The models of the last close looks, the latest first."""
        newest = tables.seen_models.c.number.desc()
        query = sa.select(tables.seen_models).order_by(newest).limit(limit)
        return tuple(map(_seen_model, self._rows(query)))

    def remember(self, seen: SeenModel, *, again: PostponedModel | None = None) -> None:
        """Store a close look, and when the next one is due, if another is due."""
        with self._changing() as connection:
            _write_seen(connection, seen)
            _write_postponed(connection, seen.repo_id, again)

    def postpone(self, model: PostponedModel) -> None:
        """Store when a model is due that was only listed."""
        with self._changing() as connection:
            _write_postponed(connection, model.repo_id, model)

    def forget(self, repo_id: str) -> None:
        """Remove a model from those that are due again."""
        with self._changing() as connection:
            _write_postponed(connection, repo_id, None)

    def due(self, now: datetime, *, limit: int) -> tuple[PostponedModel, ...]:
        """The postponed models that are due, the longest due first."""
        columns = tables.postponed_models.c
        query = sa.select(tables.postponed_models).where(columns.due_secs <= now.timestamp())
        query = query.order_by(columns.due_secs, columns.repo_id).limit(limit)
        return tuple(map(_postponed_model, self._rows(query)))

    def postponed(self, repo_id: str) -> PostponedModel | None:
        """When a model is due again; None if it is not."""
        mine = tables.postponed_models.c.repo_id == repo_id
        rows = self._rows(sa.select(tables.postponed_models).where(mine))
        return next(map(_postponed_model, rows), None)

    # Jobs.

    def order(self, order: Order, seen: SeenModel, *, mention: bool = False) -> None:
        """Store a job before it is queued, with the look that led to it.

        Args:
            order: The job.
            seen: The model.
            mention: Whether to tell its author, unless that was done before.
        """
        with self._changing() as connection:
            present = sa.select(tables.orders).where(tables.orders.c.job_id == order.job_id)
            if connection.execute(present).one_or_none() is None:
                connection.execute(
                    sa.insert(tables.orders).values(
                        job_id=order.job_id,
                        rule=order.rule,
                        request=json.dumps(request_to_json(order.request)),
                        num_bytes=order.num_bytes,
                        hours=order.hours,
                        at_secs=self._database.now(connection).timestamp(),
                        is_submitted=False,
                    )
                )
            _write_seen(connection, seen)
            _write_postponed(connection, seen.repo_id, None)
            if mention:
                _write_mention(connection, order, seen.repo_id)

    def submitted(self, job_id: str) -> None:
        """Note that the queue has a stored job."""
        mine = tables.orders.c.job_id == job_id
        self._change(sa.update(tables.orders).where(mine).values(is_submitted=True))

    def unsubmitted(self) -> tuple[Order, ...]:
        """The stored jobs that may not be in the queue, oldest first."""
        query = sa.select(tables.orders).where(tables.orders.c.is_submitted.is_(False))
        return tuple(
            Order(
                job_id=row.job_id,
                request=request_from_json(json.loads(row.request)),
                rule=row.rule,
                num_bytes=row.num_bytes,
                hours=row.hours,
            )
            for row in self._rows(query.order_by(tables.orders.c.at_secs))
        )

    def spent(self, rule: str, *, within_secs: float) -> tuple[int, float]:
        """Bytes and hours of the jobs that a rule has ordered within the last `within_secs`."""
        columns = tables.orders.c
        with self._database.reading() as connection:
            after_secs = self._database.now(connection).timestamp() - within_secs
            num_bytes, hours = connection.execute(
                sa.select(sa.func.sum(columns.num_bytes), sa.func.sum(columns.hours)).where(
                    columns.rule == rule, columns.at_secs > after_secs
                )
            ).one()
        return int(num_bytes or 0), float(hours or 0)

    # Mentions.

    def mentions(self, *, limit: int) -> tuple[Mention, ...]:
        """The models whose authors are still to be told."""
        columns = tables.mentions.c
        query = sa.select(columns.repo_id, columns.rule, columns.job_id)
        query = query.where(columns.is_done.is_(False)).order_by(columns.repo_id).limit(limit)
        return tuple(
            Mention(repo_id=row.repo_id, rule=row.rule, job_id=row.job_id)
            for row in self._rows(query)
        )

    def mentioned(self, repo_id: str) -> None:
        """Note that a model's author was told, so that no other job tells them again."""
        mine = tables.mentions.c.repo_id == repo_id
        self._change(sa.update(tables.mentions).where(mine).values(is_done=True))

    def forget_mention(self, repo_id: str) -> None:
        """Remove a mention that is no longer wanted or possible."""
        self._change(sa.delete(tables.mentions).where(tables.mentions.c.repo_id == repo_id))

    # Reports.

    def add_report(self, report: SweepReport) -> None:
        """Store a report, and delete the oldest rows of every table beyond its limit."""
        seen, postponed, reports = tables.seen_models.c, tables.postponed_models.c, tables.reports.c
        text = json.dumps(report_to_json(report))
        with self._changing() as connection:
            connection.execute(sa.insert(tables.reports).values(report=text))
            _trim(connection, reports.number, _MAX_REPORTS, newest=reports.number)
            _trim(connection, seen.repo_id, _MAX_SEEN, newest=seen.number)
            _trim(connection, postponed.repo_id, _MAX_POSTPONED, newest=postponed.since_secs)
            before_secs = self._database.now(connection).timestamp() - _ORDERS_FOR_SECS
            connection.execute(
                sa.delete(tables.orders).where(
                    tables.orders.c.at_secs < before_secs, tables.orders.c.is_submitted.is_(True)
                )
            )

    def reports(self, *, limit: int) -> tuple[SweepReport, ...]:
        """The reports of the last sweeps, the latest first."""
        newest = tables.reports.c.number.desc()
        rows = self._rows(sa.select(tables.reports.c.report).order_by(newest).limit(limit))
        return tuple(report_from_json(json.loads(row.report)) for row in rows)

    # The database.

    def _rows(self, query: sa.Select[Any]) -> Sequence[sa.Row[Any]]:
        with self._database.reading() as connection:
            return connection.execute(query).all()

    def _change(self, statement: sa.Update | sa.Delete) -> None:
        with self._changing() as connection:
            connection.execute(statement)

    @contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        """A transaction that writes, one at a time: a webhook may come in during a sweep."""
        with self._database.writing() as connection:
            connection.execute(sa.select(tables.lease.c.id).with_for_update())
            yield connection

    def _make_tables(self) -> None:
        with self._database.writing() as connection:
            if not self._database.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            if not sa.inspect(connection).has_table(tables.schema.name):
                tables.metadata.create_all(connection, checkfirst=False)
                connection.execute(sa.insert(tables.schema).values(version=tables.VERSION))
                connection.execute(
                    sa.insert(tables.lease).values(id=1, is_paused=False, held_until_secs=0.0)
                )
            version = connection.execute(sa.select(tables.schema.c.version)).scalar_one()
            if version == 1:  # it lacks one table and is the same otherwise
                tables.metadata.create_all(connection)
                version = tables.VERSION
                connection.execute(sa.update(tables.schema).values(version=version))
        if version != tables.VERSION:
            raise InvalidOptionError(
                f"The watcher's tables were made by another version of dynquant: they are version "
                f"{version}, this one knows {tables.VERSION}. Run the same version on every "
                "machine, or set DYNQUANT_DATABASE_URL to a new database."
            )


def _write_seen(connection: sa.Connection, seen: SeenModel) -> None:
    table = tables.seen_models
    connection.execute(sa.delete(table).where(table.c.repo_id == seen.repo_id))
    latest = connection.execute(sa.select(sa.func.max(table.c.number))).scalar_one() or 0
    connection.execute(
        sa.insert(table).values(
            repo_id=seen.repo_id,
            sha=seen.sha,
            fingerprint=seen.fingerprint,
            skip=seen.skip or "",
            job_id=seen.job_id,
            number=latest + 1,
        )
    )


def _write_mention(connection: sa.Connection, order: Order, repo_id: str) -> None:
    mine = tables.mentions.c.repo_id == repo_id
    if connection.execute(sa.select(tables.mentions.c.is_done).where(mine)).scalar_one_or_none():
        return
    connection.execute(sa.delete(tables.mentions).where(mine))
    connection.execute(
        sa.insert(tables.mentions).values(
            repo_id=repo_id, rule=order.rule, job_id=order.job_id, is_done=False
        )
    )


def _write_postponed(connection: sa.Connection, repo_id: str, model: PostponedModel | None) -> None:
    table = tables.postponed_models
    connection.execute(sa.delete(table).where(table.c.repo_id == repo_id))
    if model is not None:
        connection.execute(
            sa.insert(table).values(
                repo_id=repo_id,
                due_secs=model.due.timestamp(),
                since_secs=model.since.timestamp(),
            )
        )


def _trim(
    connection: sa.Connection, key: sa.Column[object], most: int, *, newest: sa.Column[object]
) -> None:
    """Leave the `most` rows whose column `newest` is greatest."""
    others = sa.select(key).order_by(newest.desc(), key).offset(most)
    connection.execute(sa.delete(key.table).where(key.in_(others)))


def _seen_model(row: sa.Row[Any]) -> SeenModel:
    return SeenModel(
        repo_id=row.repo_id,
        sha=row.sha,
        fingerprint=row.fingerprint,
        skip=Skip(row.skip) if row.skip else None,
        job_id=row.job_id,
    )


def _postponed_model(row: sa.Row[Any]) -> PostponedModel:
    return PostponedModel(
        repo_id=row.repo_id,
        due=datetime.fromtimestamp(row.due_secs, UTC),
        since=datetime.fromtimestamp(row.since_secs, UTC),
    )


def _time(secs: float | None) -> datetime | None:
    return None if secs is None else datetime.fromtimestamp(secs, UTC)
