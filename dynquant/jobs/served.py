"""The queue of pages that run with a home of their own, as `make serve` over a local Hub does.

Such pages announce their database in the home that commands use, for as long as they run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["announced", "served_queue"]

_FILE = "served-queue"


@contextmanager
def announced(database_url: str, *, home: Path) -> Iterator[None]:
    """Announce a database in `home` until the block ends."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / _FILE
    file.write_text(f"{os.getpid()}\n{database_url}\n", encoding="utf-8")
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def served_queue(home: Path) -> str | None:
    """The database that a running process announced in `home`."""
    try:
        pid, database_url = (home / _FILE).read_text(encoding="utf-8").splitlines()
        os.kill(int(pid), 0)  # sends nothing; fails if that process has ended
    except (OSError, ValueError, OverflowError):
        return None
    return database_url
