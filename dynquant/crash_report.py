"""Report an unexpected error: a sentence for the person, and a file with the details.

The file holds the traceback, versions and which command ran, without secrets and without the
folders of this machine, so that it can be attached to a report as it is.
"""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from dynquant import __version__
from dynquant.errors import DynquantError
from dynquant.logs import LOG_FILE, Redactor, secrets_in
from dynquant.settings import Settings

__all__ = ["report_crash"]

_PREFIX = "crash-"
_MAX_REPORTS = 20
"""A runner that is started again and again must not fill the disk with them."""

_MAX_MESSAGE_CHARS = 300
_LIBRARIES = ("mlx", "mlx-lm", "huggingface_hub", "transformers", "numpy", "typer", "gradio")


def report_crash(error: BaseException, *, words: Sequence[str] = ()) -> str:
    """Write the details of `error` into a file; the sentence that tells a person of it.

    Args:
        error: The unexpected error. A `SystemExit` comes from a library that ended the program.
        words: The command line; its values are not written.
    """
    clean = _Cleaner()
    said = " ".join(clean(_message(error)).split())[:_MAX_MESSAGE_CHARS]
    what = (
        f"A library ended dynquant ({said})"
        if isinstance(error, SystemExit)
        else f"Something went wrong that dynquant did not foresee ({said})"
    )
    place = _written("\n".join(_lines(error, words, clean)) + "\n")
    if place is None:
        return f"{what}, and there is no folder to write the details to. Free some disk space."
    return f"{what}. The details are in the file {place}; please report it with that file."


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return str(error.code)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _lines(error: BaseException, words: Sequence[str], clean: _Cleaner) -> Iterator[str]:
    yield f"dynquant {__version__}, Python {platform.python_version()}, {platform.platform()}"
    yield ", ".join(f"{name} {_version(name)}" for name in _LIBRARIES)
    # Values may be private: only the command and the names of options are written.
    command = next((word for word in words if not word.startswith("-")), "none")
    options = (word.partition("=")[0] for word in words if word.startswith("-"))
    yield clean(" ".join(("command:", command, *options)))
    yield ""
    yield clean("".join(traceback.format_exception(error)))


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "missing"


class _Cleaner:
    """Takes secrets and the folders of this machine out of a text."""

    def __init__(self) -> None:
        self._redact = Redactor(secrets_in(os.environ))
        named = dict(_folders())
        self._folders = sorted(named.items(), key=lambda each: -len(each[0]))

    def __call__(self, text: str) -> str:
        for folder, name in self._folders:
            text = text.replace(folder, name)
        return self._redact(text)


def _folders() -> Iterator[tuple[str, str]]:
    """Folders of this machine, and what stands for each."""
    yield str(Path(__file__).parents[1]), "…"
    yield sys.prefix, "<python>"
    yield sys.base_prefix, "<python>"
    for name, path in sysconfig.get_paths().items():
        if name in {"purelib", "platlib", "stdlib", "platstdlib"}:
            yield path, f"<{name}>"
    for find in (Path.home, Path.cwd, lambda: Path(tempfile.gettempdir())):
        try:
            path = str(find())
        except (OSError, RuntimeError):
            continue
        if len(path) > 1:
            yield path, "~" if find == Path.home else "…"


def _written(content: str) -> str | None:
    """Write `content`; what to call the file, None if there is no place for it."""
    name = f"{_PREFIX}{datetime.now(UTC):%Y%m%d-%H%M%S-%f}-{os.getpid()}.txt"
    encoded = content.encode("utf-8", "backslashreplace")
    try:
        folder = Settings.from_environment(os.environ).home / LOG_FILE.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), encoded)
        _remove_old(folder)
    except (DynquantError, OSError, ValueError):
        pass
    else:
        return f"'{LOG_FILE.parent / name}' in the folder of DYNQUANT_HOME (~/.dynquant if unset)"
    try:
        descriptor, path = tempfile.mkstemp(prefix=f"dynquant-{_PREFIX}", suffix=".txt")
        _write(descriptor, encoded)
    except OSError:
        return None
    return f"'{Path(path).name}' in the folder for temporary files (TMPDIR, /tmp if unset)"


def _write(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)


def _remove_old(folder: Path) -> None:
    for path in sorted(folder.glob(f"{_PREFIX}*.txt"))[:-_MAX_REPORTS]:
        path.unlink(missing_ok=True)
