"""A real PostgreSQL for tests: thrown away afterwards, on a free port, without a password."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_SECS

__all__ = ["PostgresServer", "postgres_server"]

_ACCOUNT = "postgres"


class PostgresServer:
    """One server; every test takes a database of its own."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self.port = _free_port()
        self._num_databases = 0
        self._run("initdb", "--auth=trust", "--username=dynquant", "--no-sync", "-D", "data")
        settings = f"port={self.port}\nlisten_addresses='127.0.0.1'\nfsync=off\n"
        settings += f"unix_socket_directories='{folder}'\n"
        with (folder / "data" / "postgresql.conf").open("a") as file:
            file.write(settings)
        self.start()

    def new_database(self) -> str:
        """URL of an empty database."""
        self._num_databases += 1
        name = f"test_{self._num_databases}"
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "dynquant", name)
        return f"postgresql://dynquant@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        self._run("pg_ctl", "start", "-w", "-D", "data", "-l", "log")

    def stop(self) -> None:
        """As if somebody pulled the plug: no client is told."""
        self._run("pg_ctl", "stop", "-m", "immediate", "-D", "data")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            command = ["runuser", "-u", _ACCOUNT, "--", *command]
        # A file and no pipe: the server would keep a pipe open, and this would wait for its end.
        with tempfile.TemporaryFile() as output:
            done = subprocess.run(
                command,
                cwd=self._folder,
                stdout=output,
                stderr=output,
                check=False,
                timeout=PATIENCE_SECS,
            )
            output.seek(0)
            assert done.returncode == 0, output.read().decode()


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server; skips the test where PostgreSQL is not installed."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="dynquant-pg-", dir="/tmp"))
    if os.geteuid() == 0:
        if shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no runuser here")
        shutil.chown(folder, _ACCOUNT)
    server = None
    try:
        server = PostgresServer(programs, folder)
        yield server
    finally:
        if server is not None:
            server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path | None:
    """Folder of the newest installed PostgreSQL; Debian keeps it out of PATH."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    return found[-1].parent if found else None


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
