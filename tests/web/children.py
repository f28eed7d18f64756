"""Processes that are started beside the tests, and that end with them whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import requests

from tests.waiting import PATIENCE_SECS, wait_until

__all__ = ["ROOT", "answering", "end", "running"]

ROOT = Path(__file__).parents[2]


@contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], *, log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, in a group of its own so that nothing that it starts outlives it.

    Args:
        log: File to append its output to; None for the output of this process.
    """
    with log.open("ab") if log else nullcontext() as said:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, start_new_session=True, stdout=said, stderr=said
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process of `running` to stop; then make it, and all that it has started."""
    process.terminate()
    try:
        process.wait(PATIENCE_SECS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE_SECS)


def answering(url: str, process: subprocess.Popen[bytes]) -> str:
    """`url`, once the pages are there.

    Raises:
        AssertionError: They do not come.
    """

    def answers() -> bool:
        if process.poll() is not None:
            raise AssertionError(f"no pages at {url}: the process ended with {process.returncode}")
        with suppress(requests.RequestException):
            return requests.get(url, timeout=5).ok
        return False

    wait_until(answers, f"pages at {url}")
    return url
