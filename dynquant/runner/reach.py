"""Tests the sandbox: which parts of this machine a confined process can still reach."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from dynquant.sandbox import clean_environment, confined

__all__ = ["reach", "statement"]

_TIMEOUT_SECS = 60.0
_TRIES = """
import os, socket, sys
port, file, secret, pid = sys.argv[1:]
def connect():
    socket.create_connection(("127.0.0.1", int(port)), 5).close()
def write():
    open(file, "w").close()
def read():
    open(secret).close()
def open_to_others():
    os.chmod(secret, 0o640)
    if os.stat(secret).st_mode & 0o777 != 0o640:
        raise PermissionError
def signal():
    os.kill(int(pid), 0)
for each in (connect, write, read, open_to_others, signal):
    try:
        each()
    except OSError:
        continue
    print(each.__name__)
"""
_WORDS = {
    "connect": "reach the network",
    "write": "write outside of its folder",
    "read": "read the files of this account",
    "open_to_others": "change who may read them",
    "signal": "signal other processes",
}


def reach() -> list[str]:
    """The actions that succeed in the sandbox, by their names in `_WORDS`.

    Raises:
        OSError, subprocess.SubprocessError: No confined process can be started.
    """
    with (
        tempfile.TemporaryDirectory(prefix="dynquant-sandbox-") as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        home = Path(folder) / "home"
        home.mkdir()
        secret = Path(folder) / "secret"
        secret.touch(mode=0o600)
        port = listener.getsockname()[1]
        tries = map(str, (port, f"{folder}/outside", secret, os.getpid()))
        done = subprocess.run(
            confined([sys.executable, "-c", _TRIES, *tries], writable=[home]),
            env=clean_environment(home, {}),
            cwd=home,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECS,
            check=True,
        )
    return done.stdout.split()


def statement(reached: list[str]) -> str:
    """The result of `reach` as a sentence."""
    if not reached:
        return (
            "The process that converts a model has no network, and reads and writes only its own "
            "files."
        )
    *rest, last = (_WORDS[each] for each in reached)
    can = f"{', '.join(rest)} and {last}" if rest else last
    return (
        f"The process that converts a model can {can}: this system has no means to prevent that "
        "(docs/security.md). It has no token; keep other secrets out of this account."
    )
