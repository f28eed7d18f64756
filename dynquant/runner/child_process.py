"""Runs a child process: it has no tokens in its environment, and is killed with this process.

Its output is read by the thread that watches it, in small parts with a pause after each, so that a
child that floods its output costs little memory and time.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import psutil

__all__ = [
    "ChildCancelledError",
    "ChildMemoryError",
    "ChildOutputError",
    "ChildSilentError",
    "run_child",
]

_SIGNALLED = 128
_POLL_SECS = 0.2
_MEMORY_POLL_SECS = 1.0
_END_SECS = 1.0
"""Between the signal to end and the signal that kills."""

_PART_BYTES = 1 << 14
_PAUSE_SECS = 0.005
_MAX_LEFT_PARTS = 128
"""Of output that are read after the child's end: the size of a pipe, as others may write on."""

_MAX_ERROR_BYTES = 20_000
_MAX_LINE_BYTES = 2_000_000  # the forecasts of a hundred targets have far less


class ChildCancelledError(Exception):
    """The child was killed because its job was cancelled."""


class ChildMemoryError(Exception):
    """The child was killed because it used too much memory: `num_bytes`."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(f"{num_bytes} bytes")
        self.num_bytes = num_bytes


class ChildSilentError(Exception):
    """The child was killed because it wrote no line for too long."""


class ChildOutputError(Exception):
    """The child was killed because it wrote a line that is too long."""


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
    """Run `command` to its end; the child is killed with this process, and all its children too.

    Args:
        command: Program and arguments. It should end when its standard input ends.
        environment: Its whole environment.
        folder: Its working directory.
        on_line: Called in this thread with every line of its standard output; an error that it
            raises kills the child.
        is_cancelled: Called a few times a second; True kills the child.
        max_memory_bytes: More memory than this, its children's included, kills it.
        max_silent_secs: A longer time without a line kills it.

    Returns:
        Exit code, or minus the signal that ended it; and the end of its standard error.

    Raises:
        ChildCancelledError: `is_cancelled` was True.
        ChildMemoryError: It used too much memory.
        ChildSilentError: It wrote no line for too long.
        ChildOutputError: It wrote a line that is too long.
    """
    child = subprocess.Popen(
        command,
        env=dict(environment),
        cwd=folder,
        stdin=subprocess.PIPE,  # never written to: its end tells the child that we are gone
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    output = _Output(child)
    try:
        try:
            _watch(
                child,
                output,
                on_line=on_line,
                is_cancelled=is_cancelled,
                max_memory_bytes=max_memory_bytes,
                max_silent_secs=max_silent_secs,
            )
        finally:
            _end(child)
        for line in output.rest():
            on_line(line)
    finally:
        output.close()
    code = child.returncode
    # The sandbox reports a signal as a shell does.
    return (_SIGNALLED - code if code > _SIGNALLED else code), output.errors


class _Output:
    """The output of a child: lines of standard output, and the end of standard error."""

    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdout is not None
        assert child.stderr is not None
        self._child = child
        self._stdout = child.stdout.fileno()
        self._line = bytearray()
        self._errors = bytearray()
        self._ready = selectors.DefaultSelector()
        for stream in (child.stdout, child.stderr):
            os.set_blocking(stream.fileno(), False)
            self._ready.register(stream, selectors.EVENT_READ)

    @property
    def errors(self) -> str:
        """The end of standard error."""
        return self._errors.decode(errors="replace")

    def read(self, timeout_secs: float) -> Iterator[str]:
        """Wait up to `timeout_secs` for a part of the output; yields the lines that it completes.

        Raises:
            ChildOutputError: A line is too long.
        """
        if not self._ready.get_map():
            time.sleep(timeout_secs)  # it closed both streams and still runs
            return
        for key, _ in self._ready.select(timeout_secs):
            try:
                part = os.read(key.fd, _PART_BYTES)
            except BlockingIOError:
                continue
            if not part:
                self._ready.unregister(key.fileobj)
            elif key.fd == self._stdout:
                yield from self._lines(part)
            else:
                self._errors += part
                del self._errors[:-_MAX_ERROR_BYTES]
        time.sleep(_PAUSE_SECS)

    def rest(self) -> Iterator[str]:
        """The lines that were written before the end and not read yet."""
        for _ in range(_MAX_LEFT_PARTS):
            if not self._ready.get_map() or not self._ready.select(0):
                break
            yield from self.read(0)
        if self._line:
            yield from self._lines(b"\n")

    def close(self) -> None:
        """Close the child's pipes, its input included."""
        self._ready.close()
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            assert stream is not None
            stream.close()

    def _lines(self, part: bytes) -> Iterator[str]:
        *ended, rest = part.split(b"\n")
        for each in ended:
            self._line += each
            yield self._line.decode(errors="replace")
            self._line.clear()
        self._line += rest
        if len(self._line) > _MAX_LINE_BYTES:
            raise ChildOutputError


def _watch(
    child: subprocess.Popen[bytes],
    output: _Output,
    *,
    on_line: Callable[[str], None],
    is_cancelled: Callable[[], bool],
    max_memory_bytes: int | None,
    max_silent_secs: float,
) -> None:
    """Read the child's lines until it ends; see `run_child`."""
    memory_due = spoke_at = time.monotonic()
    while child.poll() is None:
        if is_cancelled():
            raise ChildCancelledError
        now = time.monotonic()
        if max_memory_bytes is not None and now >= memory_due:
            memory_due = now + _MEMORY_POLL_SECS
            if (num_bytes := _memory_bytes(child.pid)) > max_memory_bytes:
                raise ChildMemoryError(num_bytes)
        for line in output.read(_POLL_SECS):
            spoke_at = now
            on_line(line)
        if now > spoke_at + max_silent_secs:
            raise ChildSilentError


def _memory_bytes(pid: int) -> int:
    """Resident memory of a process and its children."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    return total


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and its children, if they still run.

    The sandbox's process gets SIGTERM, and ends when all processes in it have ended.
    """
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_END_SECS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
