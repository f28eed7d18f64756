"""Permissions of the role in DYNQUANT_DATABASE_URL, and errors that name missing permissions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import sqlalchemy as sa

from dynquant.errors import InvalidOptionError
from dynquant.jobs.database import Database
from dynquant.jobs.job import JobState
from dynquant.jobs.workflows import Workflows
from dynquant.watch.state import DatabaseWatchState
from tests.jobs.arena import Arena
from tests.jobs.conftest import opened

pytestmark = pytest.mark.harden("other runners")

DOCS = Path(__file__).parents[2] / "docs" / "runner.md"


@dataclass
class Roles:
    """A database, and two roles without permissions outside of it: `owner` of it, and `worker`."""

    url: sa.URL
    engine: sa.Engine

    def name(self, role: str) -> str:
        return f"{role}_{self.url.database}"

    def url_of(self, role: str) -> str:
        return self.url.set(username=self.name(role)).render_as_string(hide_password=False)

    def do(self, *statements: str) -> None:
        """Run as the superuser."""
        with self.engine.connect() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))


@pytest.fixture
def roles(postgres) -> Iterator[Roles]:
    url = sa.make_url(postgres.new_database())
    driver = url.set(drivername="postgresql+psycopg")
    engine = sa.create_engine(driver, isolation_level="AUTOCOMMIT")
    roles = Roles(url, engine)
    plain = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE"
    for role in ("owner", "worker"):
        roles.do(f"CREATE ROLE {roles.name(role)} {plain}")
    roles.do(f"ALTER DATABASE {url.database} OWNER TO {roles.name('owner')}")
    try:
        yield roles
    finally:
        engine.dispose()


@pytest.fixture
def arena_of(roles, tmp_path) -> Callable[[str], Arena]:
    return lambda role: Arena(tmp_path / role, roles.url_of(role))


def documented_grants(role: str) -> list[str]:
    """The grants of docs/runner.md for a role that may not create tables."""
    block = DOCS.read_text(encoding="utf-8").partition("```sql\n")[2].partition("```")[0]
    return [line.replace("runner_role", role) for line in block.splitlines() if line]


def test_a_role_that_owns_nothing_but_its_database_is_enough(roles, arena_of):
    with opened(arena_of("owner")) as arena:
        arena.start()
        assert arena.over(arena.submit()).state is JobState.PUBLISHED
    DatabaseWatchState(roles.url_of("owner")).close()


def test_a_runner_may_be_less_than_the_owner_once_the_tables_are_there(roles, arena_of):
    with opened(arena_of("owner")) as arena:
        arena.start()
        arena.wait(lambda: any(each.is_alive for each in arena.board.runners()), "the runner")
        assert arena.over(arena.submit("org/First")).state is JobState.PUBLISHED
    DatabaseWatchState(roles.url_of("owner")).close()
    roles.do(*documented_grants(roles.name("worker")))
    with opened(arena_of("worker")) as arena:
        arena.start("two")
        job = arena.submit("org/Second")
        assert arena.over(job).runner == "two"
    state = DatabaseWatchState(roles.url_of("worker"))
    state.set_paused(True)
    state.close()
    with pytest.raises(sa.exc.ProgrammingError, match="must be owner"):
        as_worker(roles, "DROP TABLE dynquant_jobs")


def as_worker(roles: Roles, statement: str) -> None:
    engine = sa.create_engine(
        roles.url.set(drivername="postgresql+psycopg", username=roles.name("worker"))
    )
    try:
        with engine.connect() as connection:
            connection.execute(sa.text(statement))
    finally:
        engine.dispose()


def open_tables(url: str) -> None:
    Database(url).close()


def open_workflows(url: str) -> None:
    with closing(Database(url)) as database:
        Workflows(database.url, runner_id="mac", num_slots=1, run=lambda _: "").close()


@pytest.mark.parametrize("grant", ["", "GRANT CREATE ON SCHEMA public TO {}"])
def test_a_role_that_may_not_create_what_is_missing_is_told_what_to_grant(roles, grant):
    """Without the grant no table can be made; with it all tables but the engine's."""
    if grant:
        roles.do(grant.format(roles.name("worker")))
    with pytest.raises(InvalidOptionError, match=r"may not create .* OWNER TO .* docs/runner\.md"):
        open_workflows(roles.url_of("worker"))


def test_a_role_that_may_not_use_the_tables_is_told_so(roles):
    open_tables(roles.url_of("owner"))
    with pytest.raises(InvalidOptionError, match="may not create or use"):
        open_tables(roles.url_of("worker"))
