"""Which runners there are, and which of them live.

A runner counts a number up, and the others watch it change. So nobody compares the clocks of
two machines, a clock may jump, and whoever slept himself cannot take the others for dead: a
runner is dead only after so many looks at it, each as far apart as its beats.
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
        nonce: Of this process; what it writes is dropped once another has taken over.
        beat: How often it has said that it lives.
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
        """Become the runner `runner_id`; the nonce of this process.

        Args:
            runner_id: Its name.
            memory_bytes: What it has for jobs.
            num_slots: Jobs that it takes at once.
            heartbeat_secs: Between two looks at another process of that name.
            num_looks: Without a sign of life of that process until its name is taken over.
            chip: Its processor.
            sleep: Waits between the looks.

        Raises:
            InvalidOptionError: A process that lives is this runner already.
        """
        before = self._session(runner_id)
        if before is not None:
            for _ in range(num_looks):
                sleep(heartbeat_secs)
                if self._session(runner_id) != before:
                    raise _taken(runner_id)
        nonce = uuid.uuid4().hex
        with self._database.writing() as connection:
            self._lock(connection)
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
        """Say that the session lives; False if it was taken for dead."""
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
        """Say that the session is over."""
        with self._database.writing() as connection:
            connection.execute(
                sa.update(tables.runners)
                .where(tables.runners.c.session == nonce)
                .values(session=None)
            )

    def sessions(self) -> tuple[Session, ...]:
        """The sessions that have not stopped properly: they live, or are dead."""
        query = sa.select(tables.runners).where(tables.runners.c.session.is_not(None))
        with self._database.reading() as connection:
            return tuple(map(_session, connection.execute(query)))

    def memory_bytes(self, runner_id: str) -> int:
        """Memory of a runner, as it said last; 0 if nobody knows it."""
        query = sa.select(tables.runners.c.memory_bytes).where(tables.runners.c.id == runner_id)
        with self._database.reading() as connection:
            return connection.execute(query).scalar_one_or_none() or 0

    def statuses(
        self, *, num_running: dict[str, int], dead_after_secs: float
    ) -> tuple[RunnerStatus, ...]:
        """Every runner that this database has seen, for people to look at."""
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

    def _lock(self, connection: sa.Connection) -> None:
        if not self._database.is_sqlite:
            lock = f"LOCK TABLE {tables.runners.name} IN SHARE ROW EXCLUSIVE MODE"
            connection.execute(sa.text(lock))


class Watch:
    """Remembers at how many looks in a row a session had not changed."""

    def __init__(self, *, num_looks: int) -> None:
        self._num_looks = num_looks
        self._seen: dict[str, tuple[int, int]] = {}

    def dead(self, sessions: tuple[Session, ...]) -> tuple[Session, ...]:
        """Those of `sessions` that are dead by now; to be asked once per heartbeat."""
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
        f"Another runner named '{runner_id}' is running. Stop it, or set DYNQUANT_RUNNER_ID to a "
        "name of its own for this one."
    )
