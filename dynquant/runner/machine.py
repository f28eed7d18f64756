"""What a machine must grant while it converts: that it stays awake, and how much memory.

There was no Mac to try this on. Its commands and what they print are taken from their manuals
and from records of others, and the tests play them back.
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

from dynquant.report.quality_summary import gpu_share
from dynquant.sandbox.memory_limits import memory_limits

__all__ = ["awake", "chip_name", "is_memory_short", "keep_memory_flat", "usable_memory_bytes"]

_STOP_SECS = 2.0
_RUN_SECS = 5.0

_LINUX_SHARE = 0.9
"""The rest is for the system, and for the runner beside the process that converts."""

_GATHER_SECS = 5.0

_M_ARENA_MAX = -8
"""malloc.h of glibc."""

_WARNING_LEVEL = 2
"""macOS: 1 is normal, 2 a warning, 4 critical (dispatch/source.h)."""

_logger = logging.getLogger(__name__)


def _run(command: Sequence[str]) -> str:
    """What `command` prints; nothing if it fails."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=_RUN_SECS, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def keep_memory_flat() -> None:
    """Let a process that runs for months grow no larger than what it uses; before it has threads.

    On Linux its threads share one heap: glibc makes up to eight a core, and each keeps the most
    that was ever in it. What was imported is never garbage, so collections need not look at it, and
    what is left in cycles is gathered every few seconds (decision 0013).
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # a libc of another make
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    gc.collect()
    gc.freeze()
    threading.Thread(target=_gather, name="gather", daemon=True).start()


def _gather() -> None:
    while True:
        time.sleep(_GATHER_SECS)
        gc.collect()


@contextmanager
def awake(reason: str, *, platform: str = sys.platform) -> Iterator[None]:
    """Keep this machine from falling asleep by itself; a closed lid still sends it to sleep.

    Where that cannot be had the log says so, and the work goes on. It ends with this process,
    however that ends.
    """
    command = _command(reason, platform)
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # its end tells the child that we are gone
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for us: the job still has to be given back
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
    run: Callable[[Sequence[str]], str] = _run,
    root: Path = Path("/"),
) -> int:
    """How much of its memory a machine has for a job.

    On macOS what the GPU may use: the limit that somebody set (`sysctl
    iogpu.wired_limit_mb`), else the system's own. On Linux most of what the machine, or the
    control group that this process is in, has.

    Args:
        total_bytes: All memory of the machine.
        platform: As `sys.platform`.
        run: Runs a command of macOS; what it prints, nothing if it fails.
        root: Where Linux shows its control groups.
    """
    if platform == "darwin":
        wired_bytes = _number(run(["sysctl", "-n", "iogpu.wired_limit_mb"])) * 2**20
        default_bytes = round(gpu_share(total_bytes / 2**30) * total_bytes)
        return min(wired_bytes or default_bytes, total_bytes)
    limits = [total_bytes, *memory_limits(root)]
    return round(_LINUX_SHARE * min(limits))


def chip_name(
    *,
    platform: str = sys.platform,
    run: Callable[[Sequence[str]], str] = _run,
    root: Path = Path("/"),
) -> str:
    """What this machine's processor is called, such as `Apple M3 Max`; empty if nobody says."""
    if platform == "darwin":
        return run(["sysctl", "-n", "machdep.cpu.brand_string"]).strip()
    try:
        lines = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


def is_memory_short(
    *, platform: str = sys.platform, run: Callable[[Sequence[str]], str] = _run
) -> bool:
    """Whether macOS says that memory runs short: not the time to begin a job."""
    if platform != "darwin":
        return False  # what a job may take leaves the system enough there
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
        "cat",  # runs until its input, which only we hold, ends
    ]


def _watch(child: subprocess.Popen[bytes], program: str, is_over: threading.Event) -> None:
    """Say so if the child ends before it should: it was refused, or killed."""
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
