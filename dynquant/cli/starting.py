"""Prepare a process: open streams, a folder to work in, a folder for temporary files.

This runs first and imports no heavy modules, so that it works where they would fail.
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
"""Replacements that Unicode's own decomposition does not have."""

_HANDLER = "dynquant-plain"


def make_ready(words: Sequence[str] = ()) -> None:
    """Open closed streams, make every text printable, and find a folder for temporary files.

    Args:
        words: The command line.

    Raises:
        InvalidOptionError: A word is not text, or the working directory is gone.
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
    """Refuse bytes that Python could not decode, since no library could use them."""
    try:
        word.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidOptionError(
            f"'{word[:200]}' has bytes that are no text in the encoding of this system, "
            f"{sys.getfilesystemencoding()}. Name files in UTF-8, and set LC_ALL to a locale with "
            "UTF-8, such as C.UTF-8."
        ) from error


def _open_streams() -> None:
    """Open closed streams on /dev/null: otherwise the next opened file gets their number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            # `open` returns the lowest free number, which is this one; children inherit it.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  to the end
            setattr(sys, name, nowhere)


def _print_anything() -> None:
    """Write characters that a terminal does not have as similar ones, or as `?`."""
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
    """Set TMPDIR to the folder that Python found: MLX fails where TMPDIR is wrong."""
    try:
        os.environ["TMPDIR"] = tempfile.gettempdir()
    except OSError:
        return  # steps that need such a folder report it
