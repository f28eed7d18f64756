"""A process that computes for a job: no token in its environment, gone when it should be gone.

What it writes is read by the thread that watches it, in small parts and with a pause after each, so
that a child that floods its output fills no memory and costs little time.
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
"""For a child that is told to end; after that it is killed."""

_PART_BYTES = 1 << 14
_PAUSE_SECS = 0.005
_MAX_LEFT_PARTS = 128
"""Of output, to read after the end: what a pipe can hold, and no more if somebody goes on."""

_MAX_ERROR_BYTES = 20_000
_MAX_LINE_BYTES = 2_000_000  # the forecasts of a hundred targets have far less


class ChildCancelledError(Exception):
    """The child was killed because its job was cancelled."""


class ChildMemoryError(Exception):
    """The child was killed because it took more memory than it may; `num_bytes` is what it took."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__(f"{num_bytes} bytes")
        self.num_bytes = num_bytes


class ChildSilentError(Exception):
    """The child was killed because it said nothing for longer than it may."""


class ChildOutputError(Exception):
    """The child was killed because it wrote a line that is longer than any that it should write."""


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
        on_line: Called in this thread with every line of its standard output; what it raises ends
            the child.
        is_cancelled: Asked a few times a second; True kills it.
        max_memory_bytes: More than this, children included, kills it.
        max_silent_secs: Without a line for longer than this it is killed.

    Returns:
        Exit code, or minus the signal that ended it, and the end of what it wrote to standard
        error.

    Raises:
        ChildCancelledError: `is_cancelled` said so.
        ChildMemoryError: It took too much memory.
        ChildSilentError: It said nothing for too long.
        ChildOutputError: It wrote a line without an end.
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
            memory_due = spoke_at = time.monotonic()
            while child.poll() is None:
                if is_cancelled():
                    raise ChildCancelledError
                now = time.monotonic()
                if max_memory_bytes is not None and now >= memory_due:
                    memory_due = now + _MEMORY_POLL_SECS
                    num_bytes = _memory_bytes(child.pid)
                    if num_bytes > max_memory_bytes:
                        raise ChildMemoryError(num_bytes)
                for line in output.read(_POLL_SECS):
                    spoke_at = now
                    on_line(line)
                if now > spoke_at + max_silent_secs:
                    raise ChildSilentError
        finally:
            _end(child)
        for line in output.rest():
            on_line(line)
    finally:
        output.close()
    code = child.returncode
    # A confined child ends as a shell does.
    return (_SIGNALLED - code if code > _SIGNALLED else code), output.errors


class _Output:
    """What a child writes: lines of standard output, and the end of standard error."""

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
        """Wait for a part of the output, for as long as that at most; the lines that it ends.

        Raises:
            ChildOutputError: A line is too long.
        """
        if not self._ready.get_map():
            time.sleep(timeout_secs)  # it closed both and lives on
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
        """What was written before the end and not read yet; the last line may lack its end."""
        for _ in range(_MAX_LEFT_PARTS):
            if not self._ready.get_map() or not self._ready.select(0):
                break
            yield from self.read(0)
        if self._line:
            yield from self._lines(b"\n")

    def close(self) -> None:
        """Let go of the child's pipes, its input included."""
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


def _memory_bytes(pid: int) -> int:
    """Resident memory of a process and all that it started."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            total += each.memory_info().rss
    return total


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started; harmless when all is over.

    What confines it hears SIGTERM, and ends when all below it has ended.
    """
    if child.poll() is None:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(_END_SECS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
