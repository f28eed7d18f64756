"""A process that computes for a job: no token in its environment, gone when it should be gone."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

import psutil

__all__ = ["ChildCancelledError", "ChildMemoryError", "ChildSilentError", "run_child"]

_SIGNALLED = 128
_POLL_SECS = 0.2
_MEMORY_POLL_SECS = 1.0
_MAX_ERROR_CHARS = 20_000
_MAX_LINE_CHARS = 10_000_000  # the forecasts of a hundred targets have far less


class ChildCancelledError(Exception):
    """The child was killed because its job was cancelled."""


class ChildMemoryError(Exception):
    """The child was killed because it took more memory than it may; `num_bytes` is what it took."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(f"{num_bytes} bytes")
        self.num_bytes = num_bytes


class ChildSilentError(Exception):
    """The child was killed because it said nothing for longer than it may."""


def run_child(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    on_line: Callable[[str], None],
    is_cancelled: Callable[[], bool],
    max_memory_bytes: int | None = None,
    max_silent_secs: float = math.inf,
) -> tuple[int, str]:
    """Run `command` to its end; it dies with this process, and with everything it started.

    Args:
        command: Program and arguments. It should end when its standard input ends.
        environment: Its whole environment.
        folder: Where it works.
        on_line: Called in this thread with every line of its standard output.
        is_cancelled: Asked a few times a second; True kills it.
        max_memory_bytes: More than this, children included, kills it.
        max_silent_secs: Without a line for longer than this it is killed.

    Returns:
        Exit code, or minus the signal that ended it, and the end of what it wrote to standard
        error.

    Raises:
        ChildCancelledError: `is_cancelled` said so.
        ChildMemoryError: It took too much memory.
        ChildSilentError: It said nothing for too long, or a line without an end.
    """
    child = subprocess.Popen(
        command,
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.PIPE,  # never written to: its end tells the child that we are gone
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    lines: SimpleQueue[str | None] = SimpleQueue()
    errors: list[str] = []
    readers = (
        threading.Thread(target=_read_lines, args=(child, lines), daemon=True),
        threading.Thread(target=_read_errors, args=(child, errors), daemon=True),
    )
    for reader in readers:
        reader.start()
    try:
        _watch(
            child,
            lines,
            on_line,
            is_cancelled=is_cancelled,
            max_memory_bytes=max_memory_bytes,
            max_silent_secs=max_silent_secs,
        )
        code = child.wait()
    finally:
        _kill_group(child)
        for reader in readers:
            reader.join()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()
    # A confined child ends as a shell does.
    return (_SIGNALLED - code if code > _SIGNALLED else code), "".join(errors)[-_MAX_ERROR_CHARS:]


def _watch(
    child: subprocess.Popen[str],
    lines: SimpleQueue[str | None],
    on_line: Callable[[str], None],
    *,
    is_cancelled: Callable[[], bool],
    max_memory_bytes: int | None,
    max_silent_secs: float,
) -> None:
    """Pass lines on until standard output ends."""
    memory_due = spoke_at = time.monotonic()
    while True:
        if is_cancelled():
            raise ChildCancelledError
        if max_memory_bytes is not None and time.monotonic() >= memory_due:
            memory_due = time.monotonic() + _MEMORY_POLL_SECS
            num_bytes = _memory_bytes(child.pid)
            if num_bytes > max_memory_bytes:
                raise ChildMemoryError(num_bytes)
        try:
            line = lines.get(timeout=_POLL_SECS)
        except Empty:
            if time.monotonic() > spoke_at + max_silent_secs:
                raise ChildSilentError from None
            continue
        if line is None:
            return
        if len(line) >= _MAX_LINE_CHARS:
            raise ChildSilentError
        spoke_at = time.monotonic()
        on_line(line)


def _read_lines(child: subprocess.Popen[str], lines: SimpleQueue[str | None]) -> None:
    assert child.stdout is not None
    while line := child.stdout.readline(_MAX_LINE_CHARS):
        lines.put(line.rstrip("\n"))
        if len(line) >= _MAX_LINE_CHARS:
            break  # nobody waits for more of it
    lines.put(None)


def _read_errors(child: subprocess.Popen[str], errors: list[str]) -> None:
    assert child.stderr is not None
    while part := child.stderr.read(4096):
        errors.append(part)
        del errors[: -_MAX_ERROR_CHARS // 4096]


def _memory_bytes(pid: int) -> int:
    """Resident memory of a process and all that it started."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    return total


def _kill_group(child: subprocess.Popen[str]) -> None:
    """Kill the child and whatever it started; harmless when all is over."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
