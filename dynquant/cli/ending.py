"""The end of the program: every failure becomes a sentence on stderr and an exit code.

Heavy modules are imported when they are needed, so that their errors occur within `told`.
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
    missing_driver,
)

__all__ = ["CommandEnded", "main", "told"]

INTERRUPTED, READER_GONE = 130, 141
"""128 plus the number of the signal, as in shells."""

_KEPT = dict.fromkeys(
    ("measure", "quantize", "evaluate", "convert"),
    ("Downloaded files are kept: the same command goes on after them.",),
)
"""Command → what an interruption leaves, and how to go on."""

_logger = logging.getLogger(__name__)


class CommandEnded(BaseException):
    """Carries an exception, its cause, past typer, which would handle it in its own way."""


def main() -> None:
    """Entry point of `dynquant`."""
    with told(*sys.argv[1:]):
        make_ready(sys.argv[1:])
        from dynquant.cli.app import app

        app()


@contextlib.contextmanager
def told(*words: str) -> Iterator[None]:
    """Turn every exception of the block into a sentence and an exit code.

    Args:
        words: The command line; a crash report names its command and options.
    """
    hook, threading.excepthook = threading.excepthook, _log_death
    try:
        with _flushed():
            yield
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001  the last handler of the program
        cause = error.__cause__ if isinstance(error, CommandEnded) else error
        assert cause is not None
        sys.exit(_tell(cause, words))
    finally:
        threading.excepthook = hook


@contextlib.contextmanager
def _flushed() -> Iterator[None]:
    """Write the rest of the output while an error can still be reported."""
    try:
        yield
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _tell(error: BaseException, words: tuple[str, ...]) -> int:
    """Print the reason on stderr; the exit code."""
    if isinstance(error, KeyboardInterrupt):
        from dynquant.cli import console

        kept = map(str, error.args) if error.args else _KEPT.get(words[0] if words else "", ())
        _say(console.escaped(" ".join(("Interrupted.", *kept))))
        return INTERRUPTED
    # While typer prints help, rich turns it into a `SystemExit`.
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
    """`error` as one of ours, if it has a counterpart."""
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
    if isinstance(error, ImportError) and (sentence := missing_driver(str(error))) is not None:
        return InvalidOptionError(sentence)
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

    with contextlib.suppress(OSError):  # the disk is full, or the reader of stderr is gone
        for line in lines:
            console.stderr.print(line)


def _discard_output() -> None:
    """Send further output to /dev/null, or Python would print an error at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(nowhere, stream.fileno())


def _log_death(death: threading.ExceptHookArgs) -> None:
    """Log the error that ended a background thread, without printing a traceback."""
    if death.exc_value is None or isinstance(death.exc_value, SystemExit):
        return
    name = death.thread.name if death.thread is not None else "a thread"
    trace = (death.exc_type, death.exc_value, death.exc_traceback)
    _logger.error("Something went wrong in '%s'", name, exc_info=trace)
