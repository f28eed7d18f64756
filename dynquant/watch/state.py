"""What the watcher remembers, in tables of its own beside the jobs.

Every method is one transaction. A runner that dies between two of them leaves a state from
which the next sweep goes on: what was decided is written down before it is queued, and how far
the lists were read is written down last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

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

_MAX_KNOWN = 200_000
_MAX_LATER = 20_000
_MAX_REPORTS = 1_000
_ORDERS_FOR_SECS = 7 * 24 * 3600.0
_LOCK = 0x64796E77
"""Names the PostgreSQL lock under which the tables are made; any constant would do."""


class DatabaseWatchState:
    """The watcher's memory in the database of the jobs."""

    def __init__(self, url: str) -> None:
        """Open the database, and make the tables if there are none.

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
        """Let go of the database."""
        self._database.close()

    # Whose turn it is.

    def begin(
        self, holder: str, *, lease_secs: float, is_due: Callable[[datetime | None, datetime], bool]
    ) -> datetime | None:
        """Take the turn to sweep; the database's time if it is this caller's.

        Args:
            holder: Names the caller; no other process has the same name.
            lease_secs: For which the turn is taken; `renew` takes it for longer.
            is_due: Says of the beginning of the last finished sweep, and of now, whether it is
                time for another.
        """
        with self._database.writing() as connection:
            now = self._database.now(connection)
            row = connection.execute(sa.select(tables.turns).with_for_update()).one()
            is_held = row.holder not in {None, holder} and row.held_until_secs > now.timestamp()
            if row.is_paused or is_held or not is_due(_time(row.swept_at_secs), now):
                return None
            until_secs = now.timestamp() + lease_secs
            connection.execute(
                sa.update(tables.turns).values(holder=holder, held_until_secs=until_secs)
            )
        return now

    def renew(self, holder: str, *, lease_secs: float) -> bool:
        """Keep the turn; False if another has it, or the watcher was paused."""
        with self._database.writing() as connection:
            until_secs = self._database.now(connection).timestamp() + lease_secs
            result = connection.execute(
                sa.update(tables.turns)
                .where(tables.turns.c.holder == holder, tables.turns.c.is_paused.is_(False))
                .values(held_until_secs=until_secs)
            )
            return result.rowcount == 1

    def end(self, holder: str, *, began_at: datetime) -> None:
        """Give the turn back after a sweep that came to its end."""
        with self._database.writing() as connection:
            connection.execute(
                sa.update(tables.turns)
                .where(tables.turns.c.holder == holder)
                .values(holder=None, swept_at_secs=began_at.timestamp())
            )

    @property
    def is_paused(self) -> bool:
        """Whether nothing is swept until somebody says so."""
        with self._database.reading() as connection:
            return bool(connection.execute(sa.select(tables.turns.c.is_paused)).scalar_one())

    @property
    def is_sweeping(self) -> bool:
        """Whether somebody has the turn to sweep."""
        with self._database.reading() as connection:
            now = self._database.now(connection)
            row = connection.execute(sa.select(tables.turns)).one()
        return row.holder is not None and row.held_until_secs > now.timestamp()

    def set_paused(self, paused: bool) -> None:  # noqa: FBT001
        """Stop sweeping, or go on with it."""
        with self._database.writing() as connection:
            connection.execute(sa.update(tables.turns).values(is_paused=paused))

    # How far the lists were read.

    def cursor(self) -> Cursor | None:
        """Where the last sweep ended; None before the first."""
        with self._database.reading() as connection:
            row = connection.execute(sa.select(tables.turns)).one()
        since, created = _time(row.since_secs), _time(row.created_secs)
        modified = _time(row.modified_secs)
        if since is None or created is None or modified is None:
            return None
        return Cursor(since=since, created=created, modified=modified)

    def save_cursor(self, cursor: Cursor) -> None:
        """Remember how far the lists were read."""
        with self._changing() as connection:
            connection.execute(
                sa.update(tables.turns).values(
                    since_secs=cursor.since.timestamp(),
                    created_secs=cursor.created.timestamp(),
                    modified_secs=cursor.modified.timestamp(),
                )
            )

    # Models.

    def known(self, repo_id: str) -> SeenModel | None:
        """What was found out about a model; None if it is new."""
        query = sa.select(tables.known).where(tables.known.c.repo_id == repo_id)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _known_of(row)

    def latest(self, *, limit: int) -> tuple[SeenModel, ...]:
        """The models that were looked at closely, the latest first."""
        query = sa.select(tables.known).order_by(tables.known.c.number.desc()).limit(limit)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return tuple(map(_known_of, rows))

    def remember(self, known: SeenModel, *, later: PostponedModel | None = None) -> None:
        """Keep what was found out; with `later`, to look at the model again."""
        with self._changing() as connection:
            _write_known(connection, known)
            _write_later(connection, known.repo_id, later)

    def postpone(self, later: PostponedModel) -> None:
        """Look at a model again that was not looked at closely."""
        with self._changing() as connection:
            _write_later(connection, later.repo_id, later)

    def forget(self, repo_id: str) -> None:
        """Do not look at a model again by ourselves."""
        with self._changing() as connection:
            _write_later(connection, repo_id, None)

    def due(self, now: datetime, *, limit: int) -> tuple[PostponedModel, ...]:
        """The models that are to be looked at again, those that are due longest first."""
        query = sa.select(tables.later).where(tables.later.c.due_secs <= now.timestamp())
        query = query.order_by(tables.later.c.due_secs, tables.later.c.repo_id).limit(limit)
        with self._database.reading() as connection:
            rows = connection.execute(query).all()
        return tuple(map(_later_of, rows))

    def later(self, repo_id: str) -> PostponedModel | None:
        """When a model is to be looked at again; None if it is not."""
        query = sa.select(tables.later).where(tables.later.c.repo_id == repo_id)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        return None if row is None else _later_of(row)

    # Jobs.

    def order(self, order: Order, known: SeenModel, *, mention: bool = False) -> None:
        """Write down a job before it is queued, and that its model is dealt with.

        Args:
            order: The job.
            known: The model.
            mention: Whether its author is to be told, unless that was done before.
        """
        with self._changing() as connection:
            present = sa.select(tables.orders.c.job_id).where(
                tables.orders.c.job_id == order.job_id
            )
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
            _write_known(connection, known)
            _write_later(connection, known.repo_id, None)
            if mention:
                _write_mention(connection, order, known.repo_id)

    def submitted(self, job_id: str) -> None:
        """The queue has a job that was written down."""
        with self._changing() as connection:
            connection.execute(
                sa.update(tables.orders)
                .where(tables.orders.c.job_id == job_id)
                .values(is_submitted=True)
            )

    def unsubmitted(self) -> tuple[Order, ...]:
        """The jobs that were written down and may not be in the queue, oldest first."""
        query = sa.select(tables.orders).where(tables.orders.c.is_submitted.is_(False))
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(tables.orders.c.at_secs)).all()
        return tuple(
            Order(
                job_id=row.job_id,
                request=request_from_json(json.loads(row.request)),
                rule=row.rule,
                num_bytes=row.num_bytes,
                hours=row.hours,
            )
            for row in rows
        )

    def spent(self, rule: str, *, within_secs: float) -> tuple[int, float]:
        """Bytes and hours of what a rule has ordered lately."""
        columns = tables.orders.c
        with self._database.reading() as connection:
            after_secs = self._database.now(connection).timestamp() - within_secs
            num_bytes, hours = connection.execute(
                sa.select(sa.func.sum(columns.num_bytes), sa.func.sum(columns.hours)).where(
                    columns.rule == rule, columns.at_secs > after_secs
                )
            ).one()
        return int(num_bytes or 0), float(hours or 0)

    # Who is told.

    def mentions(self, *, limit: int) -> tuple[Mention, ...]:
        """The models whose authors are to be told, and were not."""
        columns = tables.mentions.c
        query = sa.select(columns.repo_id, columns.rule, columns.job_id).where(
            columns.is_done.is_(False)
        )
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(columns.repo_id).limit(limit)).all()
        return tuple(Mention(repo_id=name, rule=rule, job_id=job) for name, rule, job in rows)

    def mentioned(self, repo_id: str) -> None:
        """A model's author was told, and will not be told again."""
        mine = tables.mentions.c.repo_id == repo_id
        with self._changing() as connection:
            connection.execute(sa.update(tables.mentions).where(mine).values(is_done=True))

    def forget_mention(self, repo_id: str) -> None:
        """There is nothing to tell a model's author."""
        with self._changing() as connection:
            connection.execute(
                sa.delete(tables.mentions).where(tables.mentions.c.repo_id == repo_id)
            )

    # Reports.

    def add_report(self, report: SweepReport) -> None:
        """Keep a report, and let go of what has become too old or too much."""
        with self._changing() as connection:
            text = json.dumps(report_to_json(report))
            connection.execute(sa.insert(tables.reports).values(report=text))
            _trim(connection, tables.reports.c.number, _MAX_REPORTS, newest=tables.reports.c.number)
            _trim(connection, tables.known.c.repo_id, _MAX_KNOWN, newest=tables.known.c.number)
            _trim(connection, tables.later.c.repo_id, _MAX_LATER, newest=tables.later.c.since_secs)
            before_secs = self._database.now(connection).timestamp() - _ORDERS_FOR_SECS
            connection.execute(
                sa.delete(tables.orders).where(
                    tables.orders.c.at_secs < before_secs, tables.orders.c.is_submitted.is_(True)
                )
            )

    def reports(self, *, limit: int) -> tuple[SweepReport, ...]:
        """The reports of the last sweeps, the latest first."""
        query = (
            sa.select(tables.reports.c.report).order_by(tables.reports.c.number.desc()).limit(limit)
        )
        with self._database.reading() as connection:
            texts = connection.execute(query).scalars().all()
        return tuple(report_from_json(json.loads(text)) for text in texts)

    @contextmanager
    def _changing(self) -> Iterator[sa.Connection]:
        """A transaction that writes, one at a time: a webhook may come in during a sweep."""
        with self._database.writing() as connection:
            connection.execute(sa.select(tables.turns.c.id).with_for_update())
            yield connection

    def _make_tables(self) -> None:
        with self._database.writing() as connection:
            if not self._database.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            if not sa.inspect(connection).has_table(tables.schema.name):
                tables.metadata.create_all(connection, checkfirst=False)
                connection.execute(sa.insert(tables.schema).values(version=tables.VERSION))
                connection.execute(
                    sa.insert(tables.turns).values(id=1, is_paused=False, held_until_secs=0.0)
                )
            version = connection.execute(sa.select(tables.schema.c.version)).scalar_one()
            if version == 1:  # all that it lacks is a table
                tables.metadata.create_all(connection)
                version = tables.VERSION
                connection.execute(sa.update(tables.schema).values(version=version))
        if version != tables.VERSION:
            raise InvalidOptionError(
                f"The watcher's tables were made by another version of dynquant: they are version "
                f"{version}, this one knows {tables.VERSION}. Run the same version on every "
                "machine, or set DYNQUANT_DATABASE_URL to a new database."
            )


def _write_known(connection: sa.Connection, known: SeenModel) -> None:
    connection.execute(sa.delete(tables.known).where(tables.known.c.repo_id == known.repo_id))
    latest = connection.execute(sa.select(sa.func.max(tables.known.c.number))).scalar_one() or 0
    connection.execute(
        sa.insert(tables.known).values(
            repo_id=known.repo_id,
            sha=known.sha,
            fingerprint=known.fingerprint,
            skip=known.skip or "",
            job_id=known.job_id,
            number=latest + 1,
        )
    )


def _write_mention(connection: sa.Connection, order: Order, repo_id: str) -> None:
    mine = tables.mentions.c.repo_id == repo_id
    done = connection.execute(sa.select(tables.mentions.c.is_done).where(mine)).scalar_one_or_none()
    if done:
        return
    connection.execute(sa.delete(tables.mentions).where(mine))
    connection.execute(
        sa.insert(tables.mentions).values(
            repo_id=repo_id, rule=order.rule, job_id=order.job_id, is_done=False
        )
    )


def _write_later(connection: sa.Connection, repo_id: str, later: PostponedModel | None) -> None:
    connection.execute(sa.delete(tables.later).where(tables.later.c.repo_id == repo_id))
    if later is not None:
        connection.execute(
            sa.insert(tables.later).values(
                repo_id=repo_id,
                due_secs=later.due.timestamp(),
                since_secs=later.since.timestamp(),
            )
        )


def _trim(
    connection: sa.Connection, key: sa.Column[object], most: int, *, newest: sa.Column[object]
) -> None:
    """Leave the `most` rows whose column `newest` is greatest."""
    others = sa.select(key).order_by(newest.desc(), key).offset(most)
    connection.execute(sa.delete(key.table).where(key.in_(others)))


def _known_of(row: sa.Row[tuple[object, ...]]) -> SeenModel:
    return SeenModel(
        repo_id=row.repo_id,
        sha=row.sha,
        fingerprint=row.fingerprint,
        skip=Skip(row.skip) if row.skip else None,
        job_id=row.job_id,
    )


def _later_of(row: sa.Row[tuple[object, ...]]) -> PostponedModel:
    return PostponedModel(
        repo_id=row.repo_id,
        due=datetime.fromtimestamp(row.due_secs, UTC),
        since=datetime.fromtimestamp(row.since_secs, UTC),
    )


def _time(secs: float | None) -> datetime | None:
    return None if secs is None else datetime.fromtimestamp(secs, UTC)
