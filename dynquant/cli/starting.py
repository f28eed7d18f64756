"""Prepare a process: open streams, a folder to work in, a folder for temporary files.

Nothing heavy is imported here: it runs before all else, also where all else would fail.
"""

from __future__ import annotations

import codecs
import io
import os
import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from dynquant.errors import InvalidOptionError

__all__ = ["make_ready"]

_PLAIN = {
    **dict.fromkeys("—–−", "-"),
    "\u2018": "'",
    "\u2019": "'",
    "\u201c": '"',
    "\u201d": '"',
    "×": "x",
    "±": "+-",
    "•": "*",
}
"""Characters that Unicode itself does not take for similar to others."""

_HANDLER = "dynquant-plain"


def make_ready(words: Sequence[str] = ()) -> None:
    """Open what is closed, let every text be printed, and find a folder for temporary files.

    Args:
        words: The command line.

    Raises:
        InvalidOptionError: A word is no text, or the folder that this process works in is gone.
    """
    _open_streams()
    _print_anything()
    for word in words:
        _require_text(word)
    try:
        Path.cwd()
    except OSError as error:
        raise InvalidOptionError(
            "The folder that this command was started in is gone or cannot be entered. Change "
            "into another one, and try again."
        ) from error
    _agree_on_temporary_folder()


def _require_text(word: str) -> None:
    """Refuse bytes that Python could not decode: no library that we pass them to could either."""
    try:
        word.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidOptionError(
            f"'{word[:200]}' has bytes that are no text in the encoding of this system, "
            f"{sys.getfilesystemencoding()}. Name files in UTF-8, and set LC_ALL to a locale with "
            "UTF-8, such as C.UTF-8."
        ) from error


def _open_streams() -> None:
    """Give closed streams to /dev/null: else the next file that is opened takes their place."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # It takes the lowest number, which is this one; what we start is to have it too.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  to the end
            setattr(sys, name, nowhere)


def _print_anything() -> None:
    """On terminals that know few characters the others are written as similar ones, or as `?`."""
    codecs.register_error(_HANDLER, _plainly)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_HANDLER)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_plain, error.object[error.start : error.end])), error.end


def _plain(char: str) -> str:
    similar = _PLAIN.get(char) or unicodedata.normalize("NFKD", char)
    return similar.encode("ascii", "ignore").decode("ascii") or "?"


def _agree_on_temporary_folder() -> None:
    """Name the folder that Python found to everything else: MLX fails where TMPDIR is wrong."""
    try:
        os.environ["TMPDIR"] = tempfile.gettempdir()
    except OSError:
        return  # what needs such a folder says so
