from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.jobs.arena import Arena


@pytest.fixture
def arena(tmp_path, database_url) -> Iterator[Arena]:
    with opened(Arena(tmp_path / "arena", database_url)) as arena:
        yield arena


@pytest.fixture
def sqlite_arena(tmp_path) -> Iterator[Arena]:
    with opened(Arena(tmp_path / "arena", f"sqlite:///{tmp_path / 'jobs.sqlite'}")) as arena:
        yield arena


@pytest.fixture
def postgres_arena(tmp_path, postgres) -> Iterator[Arena]:
    with opened(Arena(tmp_path / "arena", postgres.new_database())) as arena:
        yield arena


@contextmanager
def opened(arena: Arena) -> Iterator[Arena]:
    try:
        yield arena
    finally:
        arena.close()
