"""Databases that cannot be used, each with its error."""

from __future__ import annotations

import sqlite3
import sys
from types import SimpleNamespace

import pytest
import sqlalchemy as sa

from dynquant.errors import InvalidOptionError, RetryLaterError, StorageFullError
from dynquant.jobs import database as database_module
from dynquant.jobs import tables
from dynquant.jobs.database import Database


def refusal(url: str) -> str:
    with pytest.raises((InvalidOptionError, RetryLaterError)) as caught:
        Database(url).close()
    return f"{type(caught.value).__name__}: {caught.value}"


def test_tables_of_another_version_are_refused(database_url):
    database = Database(database_url)
    with database.writing() as connection:
        connection.execute(sa.update(tables.schema).values(version=99))
    database.close()
    message = refusal(database_url)
    assert message.startswith("InvalidOptionError: The job database was made by another version")
    assert "version 99" in message


def test_opening_again_keeps_what_is_there(database_url):
    for _ in range(2):
        database = Database(database_url)
        with database.reading() as connection:
            assert connection.execute(sa.select(tables.schema.c.version)).scalars().all() == [
                tables.VERSION
            ]
        database.close()


def test_nobody_listens_at_the_url():
    message = refusal("postgresql://me:hunter2@127.0.0.1:1/jobs")
    assert message.startswith("RetryLaterError: The job database does not answer.")
    assert "hunter2" not in message


def test_a_database_or_user_that_does_not_exist(postgres):
    url = sa.make_url(postgres.new_database())
    for wrong in (url.set(database="nobody"), url.set(username="nobody")):
        assert "Correct the URL, or create the database." in refusal(wrong.render_as_string())


@pytest.mark.parametrize("url", ["postgresql://me:p@ss@host:port/db", "not a url"])
def test_a_url_that_cannot_be_read(url):
    assert refusal(url).startswith("InvalidOptionError: DYNQUANT_DATABASE_URL cannot be read.")


def test_a_file_that_is_no_database(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("These are my notes. " * 100)
    message = refusal(f"sqlite:///{path}")
    assert "cannot use the database in DYNQUANT_DATABASE_URL" in message
    assert str(tmp_path) not in message
    assert path.read_text().startswith("These are my notes.")


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    assert "Set DYNQUANT_HOME" in refusal(f"sqlite:///{tmp_path}/file/jobs.sqlite")


def test_a_folder_in_place_of_the_file(tmp_path):
    assert "cannot be written" in refusal(f"sqlite:///{tmp_path}")


def test_a_database_that_somebody_has_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(database_module, "_BUSY_TIMEOUT_MSECS", 10)
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    Database(url).close()
    # The SQLite that `Database` uses: two of them in one process do not see each other's locks.
    other = sys.modules["sqlite3"].connect(tmp_path / "jobs.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert "Another process has locked the job database." in refusal(url)
    other.close()


def test_a_file_database_lets_others_read_while_one_writes(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    with database.writing() as writer, database.reading() as reader:
        writer.execute(sa.update(tables.schema).values(version=5))
        assert reader.execute(sa.select(tables.schema.c.version)).scalar_one() == tables.VERSION
    database.close()


@pytest.mark.parametrize("replacement", [None, SimpleNamespace(sqlite_version_info=(3, 40, 1))])
def test_an_sqlite_that_is_too_old_is_named_with_what_to_install(
    tmp_path, monkeypatch, replacement
):
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    monkeypatch.setattr(database_module, "sqlite3", sqlite3)
    monkeypatch.setitem(sys.modules, "pysqlite3", replacement)
    assert "Install pysqlite3-binary" in refusal(f"sqlite:///{tmp_path / 'jobs.sqlite'}")


def test_a_full_disk_is_named(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    with pytest.raises(StorageFullError, match="Free some space"):
        fill(database)
    with database.reading() as connection:
        assert connection.execute(sa.select(tables.log)).all() == []
    database.close()


def fill(database: Database) -> None:
    row = {"job_id": "a", "at_secs": 0.0, "kind": "note", "sentence": "x" * 100_000}
    with database.writing() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")
        connection.execute(sa.insert(tables.log).values(row))
