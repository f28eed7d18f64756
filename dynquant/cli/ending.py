"""How a program ends: every way but a good one is a sentence on stderr and an exit code.

Nothing heavy is imported before it is needed, so that little can happen outside of `told`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator

from dynquant.cli.starting import make_ready
from dynquant.errors import (
    DynquantError,
    InvalidOptionError,
    NotEnoughMemoryError,
    StorageFullError,
    means_full_disk,
    means_no_memory,
)

__all__ = ["CommandEnded", "main", "told"]

INTERRUPTED, READER_GONE = 130, 141
"""128 and the number of the signal, as shells have it."""

_logger = logging.getLogger(__name__)


class CommandEnded(BaseException):
    """Carries past typer what would make it end the program in its own way; the cause says what."""


def main() -> None:
    """Entry point of `dynquant`."""
    with told(*sys.argv[1:]):
        make_ready(sys.argv[1:])
        from dynquant.cli.app import app

        app()


@contextlib.contextmanager
def told(*words: str) -> Iterator[None]:
    """Turn whatever ends the block, other than well, into a sentence and an exit code.

    Args:
        words: The command line, of which a crash report names the command and the options.
    """
    hook, threading.excepthook = threading.excepthook, _log_death
    try:
        with _flushed():
            yield
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001  this is where everything ends
        cause = error.__cause__ if isinstance(error, CommandEnded) else error
        assert cause is not None
        sys.exit(_tell(cause, words))
    finally:
        threading.excepthook = hook


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Write the rest of the output at the end, while an error can still be told."""
    try:
        yield
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _tell(error: BaseException, words: tuple[str, ...]) -> int:
    """Say on stderr why it ended; the exit code."""
    if isinstance(error, KeyboardInterrupt):
        _say("Interrupted.")
        return INTERRUPTED
    # Where typer prints help, rich has made a `SystemExit` of it.
    if any(isinstance(each, BrokenPipeError) for each in (error, error.__context__)):
        _discard_output()
        return READER_GONE
    if (known := _known(error)) is not None:
        done = ", ".join(repo_id for repo_id, _ in known.published)
        _say_error(str(known), *([f"Published before that: {done}."] if done else []))
        return known.exit_code
    from dynquant.crash_report import report_crash

    _say_error(report_crash(error, words=words))
    return 1


def _known(error: BaseException) -> DynquantError | None:
    """`error` in our words, if there are any."""
    if isinstance(error, DynquantError):
        return error
    if means_no_memory(error):
        return NotEnoughMemoryError(
            "There is not enough memory on this machine. End other programs, or take a smaller "
            "model.",
            needed_bytes=0,
        )
    if isinstance(error, ModuleNotFoundError) and error.name in {"mlx", "mlx_lm"}:
        return InvalidOptionError(
            "MLX is not installed. Install it with 'pip install \"dynquant[mlx]\"', on a Mac with "
            "Apple silicon or on Linux."
        )
    if means_full_disk(error):
        return StorageFullError(
            "The disk is full or cannot be written any more. Free some space, and try again."
        )
    return None


def _say_error(sentence: str, *more: str) -> None:
    from dynquant.cli import console

    _say(f"[bold red]Error:[/] {console.escaped(sentence)}", *map(console.escaped, more))


def _say(*lines: str) -> None:
    from dynquant.cli import console

    with contextlib.suppress(OSError):  # the disk is full, or stderr has no reader left
        for line in lines:
            console.stderr.print(line)


def _discard_output() -> None:
    """Write to nowhere from now on, or Python would complain once more when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())


def _log_death(death: threading.ExceptHookArgs) -> None:
    """An error ended a thread that is never joined: a line in the log, no traceback."""
    if death.exc_value is None or isinstance(death.exc_value, SystemExit):
        return
    name = death.thread.name if death.thread is not None else "a thread"
    trace = (death.exc_type, death.exc_value, death.exc_traceback)
    _logger.error("Something went wrong in '%s'", name, exc_info=trace)
