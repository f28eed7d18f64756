"""The runners, and which of them are alive.

A runner increments a counter at every heartbeat, and the other runners watch it change. So the
clocks of two machines are never compared, a clock may jump, and a runner whose machine slept does
not count the others as dead: a runner counts as dead only after several looks without a change, one
look per heartbeat.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa

from dynquant import __version__
from dynquant.errors import InvalidOptionError
from dynquant.jobs import tables
from dynquant.jobs.database import Database
from dynquant.jobs.ports import RunnerStatus

__all__ = ["Registry", "Session", "Watch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A runner's process.

    Attributes:
        nonce: Names this process; its changes are dropped once another process has taken over.
        beat: Number of its heartbeats.
    """

    nonce: str
    beat: int


class Registry:
    """The runners in the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def join(
        self,
        runner_id: str,
        *,
        memory_bytes: int,
        num_slots: int,
        heartbeat_secs: float,
        num_looks: int = 3,
        chip: str = "",
        sleep: Callable[[float], None] = time.sleep,
    ) -> str:
        """Register as the runner `runner_id`; returns the nonce of this process.

        Args:
            runner_id: Its name.
            memory_bytes: Memory for jobs.
            num_slots: Jobs that it runs at once.
            heartbeat_secs: Between two looks at another process of that name.
            num_looks: Without a heartbeat of that process until its name is taken over.
            chip: Its processor.
            sleep: Waits between the looks.

        Raises:
            InvalidOptionError: Another live process is this runner already.
        """
        before = self._session(runner_id)
        if before is not None:
            for _ in range(num_looks):
                sleep(heartbeat_secs)
                if self._session(runner_id) != before:
                    raise _taken(runner_id)
        nonce = uuid.uuid4().hex
        with self._database.writing() as connection:
            self._database.lock(connection, tables.runners)
            if _read_session(connection, runner_id) != before:
                raise _taken(runner_id)
            connection.execute(sa.delete(tables.runners).where(tables.runners.c.id == runner_id))
            connection.execute(
                sa.insert(tables.runners).values(
                    id=runner_id,
                    session=nonce,
                    beat=0,
                    beat_at_secs=self._database.now(connection).timestamp(),
                    memory_bytes=memory_bytes,
                    num_slots=num_slots,
                    version=__version__,
                    chip=chip,
                )
            )
        return nonce

    def beat(self, nonce: str) -> bool:
        """Count a heartbeat; False if the session was counted as dead."""
        with self._database.writing() as connection:
            result = connection.execute(
                sa.update(tables.runners)
                .where(tables.runners.c.session == nonce)
                .values(
                    beat=tables.runners.c.beat + 1,
                    beat_at_secs=self._database.now(connection).timestamp(),
                )
            )
            return result.rowcount == 1

    def leave(self, nonce: str) -> None:
        """End the session."""
        with self._database.writing() as connection:
            connection.execute(
                sa.update(tables.runners)
                .where(tables.runners.c.session == nonce)
                .values(session=None)
            )

    def sessions(self) -> tuple[Session, ...]:
        """The sessions that did not end: their processes are alive or dead."""
        query = sa.select(tables.runners).where(tables.runners.c.session.is_not(None))
        with self._database.reading() as connection:
            return tuple(map(_session, connection.execute(query)))

    def memory_bytes(self, runner_id: str) -> int:
        """Memory of a runner, as it registered last; 0 if it is unknown."""
        query = sa.select(tables.runners.c.memory_bytes).where(tables.runners.c.id == runner_id)
        with self._database.reading() as connection:
            return connection.execute(query).scalar_one_or_none() or 0

    def statuses(
        self, *, num_running: dict[str, int], dead_after_secs: float
    ) -> tuple[RunnerStatus, ...]:
        """Every runner that ever registered, for display."""
        with self._database.reading() as connection:
            now = self._database.now(connection).timestamp()
            rows = connection.execute(sa.select(tables.runners).order_by(tables.runners.c.id)).all()
        return tuple(
            RunnerStatus(
                id=row.id,
                version=row.version,
                memory_bytes=row.memory_bytes,
                num_slots=row.num_slots,
                num_running=num_running.get(row.session, 0),
                silent_secs=max(0.0, now - row.beat_at_secs),
                is_alive=row.session is not None and now - row.beat_at_secs < dead_after_secs,
                chip=row.chip,
            )
            for row in rows
        )

    def _session(self, runner_id: str) -> Session | None:
        with self._database.reading() as connection:
            return _read_session(connection, runner_id)


class Watch:
    """Counts for each session the looks in a row without a new heartbeat."""

    def __init__(self, *, num_looks: int) -> None:
        self._num_looks = num_looks
        self._seen: dict[str, tuple[int, int]] = {}

    def dead(self, sessions: tuple[Session, ...]) -> tuple[Session, ...]:
        """Those of `sessions` that are dead by now; to be called once per heartbeat."""
        counts: dict[str, tuple[int, int]] = {}
        for session in sessions:
            beat, count = self._seen.get(session.nonce, (-1, 0))
            counts[session.nonce] = (session.beat, count + 1 if beat == session.beat else 0)
        self._seen = counts
        return tuple(each for each in sessions if counts[each.nonce][1] >= self._num_looks)


def _read_session(connection: sa.Connection, runner_id: str) -> Session | None:
    query = sa.select(tables.runners).where(
        tables.runners.c.id == runner_id, tables.runners.c.session.is_not(None)
    )
    row = connection.execute(query).one_or_none()
    return None if row is None else _session(row)


def _session(row: sa.Row[tuple[object, ...]]) -> Session:
    return Session(nonce=row.session, beat=row.beat)


def _taken(runner_id: str) -> InvalidOptionError:
    return InvalidOptionError(
        f"Another runner named '{runner_id}' is running. Stop it, or set DYNQUANT_RUNNER_ID to "
        "another name for this runner."
    )
