"""The machine while it converts: kept awake, and how much of its memory a job may use.

This was not tried on a Mac. The commands of macOS and their outputs are taken from manuals and
published examples, and the tests replay them.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from dynquant.report.quality_summary import gpu_bytes
from dynquant.sandbox.memory_limits import memory_limits

__all__ = [
    "awake",
    "chip_name",
    "is_memory_short",
    "keep_memory_flat",
    "run_quietly",
    "usable_memory_bytes",
]

_STOP_SECS = 2.0
_RUN_SECS = 5.0

_LINUX_SHARE = 0.9
"""The rest is for the system and for the runner itself."""

_COLLECT_SECS = 5.0

_M_ARENA_MAX = -8
"""malloc.h of glibc."""

_WARNING_LEVEL = 2
"""macOS: 1 is normal, 2 a warning, 4 critical (dispatch/source.h)."""

_logger = logging.getLogger(__name__)


def run_quietly(command: Sequence[str]) -> str:
    """The output of `command`; empty if it fails."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_RUN_SECS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def keep_memory_flat() -> None:
    """Keep the memory of a process that runs for months flat; to be called before it has threads.

    On Linux its threads share one heap: glibc makes up to eight per core, and each keeps its
    largest size. Imported modules are never garbage, so collections skip them, and reference
    cycles are collected every few seconds (decision 0013).
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # another libc than glibc
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    gc.collect()
    gc.freeze()
    threading.Thread(target=_collect, name="collect", daemon=True).start()


def _collect() -> None:
    while True:
        time.sleep(_COLLECT_SECS)
        gc.collect()


@contextmanager
def awake(reason: str, *, platform: str = sys.platform) -> Iterator[None]:
    """Keep this machine from falling asleep by itself; a closed lid still sends it to sleep.

    If that fails, the log says so and the work continues. It ends with this process.
    """
    command = _command(reason, platform)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C must not end it: the job still has to be given back
        )
    except OSError as error:
        _logger.info(
            "This machine may fall asleep during a job: %s cannot be run (%s).",
            command[0],
            error.strerror,
        )
        yield
        return
    is_over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(child, command[0], is_over), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        is_over.set()
        _end(child)
        watcher.join()


def usable_memory_bytes(
    total_bytes: int,
    *,
    platform: str = sys.platform,
    run: Callable[[Sequence[str]], str] = run_quietly,
    root: Path = Path("/"),
) -> int:
    """The memory that a job may use on a machine.

    On macOS the memory that the GPU may use: the limit that was set by `sysctl
    iogpu.wired_limit_mb`, else the system's default. On Linux most of the memory of the machine or
    of this process's control group.

    Args:
        total_bytes: All memory of the machine.
        platform: As `sys.platform`.
        run: Runs a command of macOS; returns its output, empty if it fails.
        root: Linux shows its control groups below it.
    """
    if platform == "darwin":
        wired_bytes = _number(run(["sysctl", "-n", "iogpu.wired_limit_mb"])) * 2**20
        default_bytes = round(gpu_bytes(total_bytes))
        return min(wired_bytes or default_bytes, total_bytes)
    limits = [total_bytes, *memory_limits(root)]
    return round(_LINUX_SHARE * min(limits))


def chip_name(
    *,
    platform: str = sys.platform,
    run: Callable[[Sequence[str]], str] = run_quietly,
    root: Path = Path("/"),
) -> str:
    """Name of this machine's processor, such as `Apple M3 Max`; empty if it is unknown."""
    if platform == "darwin":
        return run(["sysctl", "-n", "machdep.cpu.brand_string"]).strip()
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


def is_memory_short(
    *, platform: str = sys.platform, run: Callable[[Sequence[str]], str] = run_quietly
) -> bool:
    """Whether macOS reports that memory is short, so that no job should begin."""
    if platform != "darwin":
        return False  # `usable_memory_bytes` leaves the system enough there
    level = run(["sysctl", "-n", "kern.memorystatus_vm_pressure_level"])
    return _number(level) >= _WARNING_LEVEL


def _command(reason: str, platform: str) -> list[str]:
    if platform == "darwin":
        return ["caffeinate", "-i", "-m", "-w", str(os.getpid())]
    return [
        "systemd-inhibit",
        "--what=idle:sleep",
        "--who=dynquant",
        f"--why={reason}",
        "--mode=block",
        "cat",  # runs until its input ends, which this process holds
    ]


def _watch(child: subprocess.Popen[bytes], program: str, is_over: threading.Event) -> None:
    """Log it if the child ends early, because it was refused or killed."""
    code = child.wait()
    if not is_over.is_set():
        _logger.info(
            "This machine may fall asleep during a job: %s ended by itself (code %d).",
            program,
            code,
        )


def _end(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.close()
    child.terminate()
    try:
        child.wait(_STOP_SECS)
    except subprocess.TimeoutExpired:
        child.kill()


def _number(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0
