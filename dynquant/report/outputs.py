"""Finished folders on disk: staged beside their place, renamed into it when whole."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dynquant.errors import OutputFolderError, disk_errors_translated, means_full_disk
from dynquant.report.artefacts import facts_from_json, origin_in
from dynquant.report.facts import ModelFacts
from dynquant.report.finished_files import PLAN, REPORT
from dynquant.sandbox.held_folder import STAGED, HeldFolder

__all__ = [
    "MARKER",
    "OutputFolders",
    "check_file",
    "finished_folders",
    "read_facts",
    "read_text",
    "write_file",
]

MARKER = PLAN
"""dynquant made every folder that has this file."""

_OLD = f".old{STAGED}"

_IN_THE_WAY = {
    errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
    errno.ELOOP,
}  # fmt: skip


class OutputFolders:
    """Folders below `root`; implements `in_process.OutputStore`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self, names: Sequence[str], *, source: str = "") -> None:
        """Refuse before any work when one of the folders could not be made.

        Args:
            names: Of the folders.
            source: Name of the source model; empty while it is unknown.

        Raises:
            OutputFolderError: Something that dynquant did not make, or a quant of another model,
                is in the way.
        """
        with _translated():
            _check_place(self._root)
            entries = sorted(self._root.iterdir()) if self._root.is_dir() else []
            for entry in entries:
                if not _is_ours(entry):
                    raise OutputFolderError(
                        f"'{self._root}' holds '{entry.name}', which dynquant did not make. "
                        "Pass a new folder to --out, or one that dynquant made before."
                    )
            for name in names:
                if _is_locked(self._staged(name)):
                    raise _busy(name)
                other = origin_in(read_text(self.final(name) / PLAN) or "")
                if source and other and other.name != source:
                    raise OutputFolderError(
                        f"'{self._root}' holds '{name}', which was made of '{other.name}' and "
                        f"not of '{source}'. Pass another --out, or move it away."
                    )

    @contextmanager
    def staged(self, names: Sequence[str]) -> Iterator[Mapping[str, Path]]:
        """Name → an empty folder; all get their final names when the block ends without an error.

        Leftovers of a killed run are removed first.

        Raises:
            OutputFolderError: See `check`.
            StorageFullError: The disk is full or cannot be written.
        """
        self.check(names)
        folders = {name: self._staged(name) for name in names}
        made = [path for path in (self._root, *self._root.parents) if not path.exists()]
        with ExitStack() as exits:
            exits.callback(_remove_empty, made)
            with _translated():
                self._root.mkdir(parents=True, exist_ok=True)
                with _locked(self._root):  # so that two runs never use one name
                    self._sweep(names)
                    for folder in folders.values():
                        exits.callback(shutil.rmtree, folder, ignore_errors=True)
                        folder.mkdir()
                        exits.enter_context(_locked(folder))
            yield folders
            with _translated():
                for name, folder in folders.items():
                    self._replace(folder, name)

    def write_text(self, folder: Path, name: str, content: str) -> None:
        """Write file `name` into a staged folder.

        Raises:
            StorageFullError: The disk is full or cannot be written.
        """
        write_file(folder / name, content)

    def read_text(self, folder: Path, name: str) -> str | None:
        """Contents of file `name` of a folder; None if there is no such file."""
        return read_text(folder / name)

    def final(self, name: str) -> Path:
        """The path of the finished folder."""
        return self._root / name

    def beside(self, name: str) -> Path:
        """The path of a file beside the folders: `quants.cost_table.json`."""
        return self._root.absolute().with_name(f"{self._root.absolute().name}.{name}")

    def _staged(self, name: str) -> Path:
        return self._root / f".{name}{STAGED}"

    def _sweep(self, names: Sequence[str]) -> None:
        """Remove leftovers of killed runs, except folders that a running process holds."""
        for entry in sorted(self._root.glob(f".*{STAGED}")):
            name = entry.name.removesuffix(_OLD).removeprefix(".")
            if _is_locked(entry):
                if entry in map(self._staged, names):
                    raise _busy(name.removesuffix(STAGED))
            elif entry.name.endswith(_OLD) and not self.final(name).exists():
                entry.rename(self.final(name))  # killed between the two renames of `_replace`
            else:
                shutil.rmtree(entry, ignore_errors=True)

    def _replace(self, folder: Path, name: str) -> None:
        """Give `folder` its final name; an older folder is removed after that."""
        target, old = self.final(name), self._root / f".{name}{_OLD}"
        if target.exists():
            target.rename(old)
        folder.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def read_text(path: Path) -> str | None:
    """Contents of a file; None if there is no such file, or it is not text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def finished_folders(folder: Path) -> list[Path]:
    """`folder` itself, or the folders in it, if dynquant made them.

    Raises:
        OutputFolderError: dynquant made none of these folders.
    """
    if (folder / MARKER).is_file():
        return [folder]
    found = sorted(path.parents[1] for path in folder.glob(f"*/{MARKER}"))
    if not found:
        raise OutputFolderError(
            f"'{folder}' holds no model that dynquant made. Pass a folder that 'dynquant "
            "quantize' wrote, or the one above several of them."
        )
    return found


def read_facts(folder: Path) -> ModelFacts:
    """Facts of the model in a finished folder, from its plan and report.

    Raises:
        InvalidModelError: They are missing or malformed.
    """
    plan, report = read_text(folder / PLAN), read_text(folder / REPORT)
    return facts_from_json(plan or "", report or "", name=folder.name)


def check_file(path: Path) -> None:
    """Refuse before any work when the file `path` could not be written.

    Raises:
        OutputFolderError: A folder has that name, or the folder to hold it cannot be written.
    """
    with _translated():
        if path.is_dir():
            raise OutputFolderError(f"'{path}' is a folder. Pass the name of a file.")
        _check_place(path.parent)


def write_file(path: Path, content: str) -> None:
    """Write a text file atomically.

    Raises:
        OutputFolderError: It cannot be written there.
        StorageFullError: The disk is full or cannot be written.
    """
    with _translated():
        path.parent.mkdir(parents=True, exist_ok=True)
        with HeldFolder.open(path.parent) as folder:
            folder.write_text(path.name, content)


def _check_place(folder: Path) -> None:
    """Refuse a path that is not a folder, or a folder that cannot be made."""
    here = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not here.is_dir():
        raise OutputFolderError(
            f"'{here}' is a file, so no folder can be made there. Pass another --out."
        )
    try:
        # Tried, since permissions alone do not tell: of /proc, of a mount, for root.
        with TemporaryDirectory(dir=here, prefix=".", suffix=STAGED):
            pass
    except OSError as error:
        if means_full_disk(error):
            raise
        raise OutputFolderError(
            f"'{here}' cannot be written. Pass another --out, or change its permissions."
        ) from error


def _is_ours(entry: Path) -> bool:
    if entry.name.startswith(".") and (entry.name.endswith(STAGED) or entry.is_file()):
        return True
    return (entry / MARKER).is_file()


def _busy(name: str) -> OutputFolderError:
    return OutputFolderError(
        f"Another run is writing '{name}' there. Wait for it, or pass another --out."
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock `folder`; the system releases the lock when this process ends, in any way."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_locked(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove the folders that are empty, the innermost first."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


@contextmanager
def _translated() -> Iterator[None]:
    with disk_errors_translated():
        try:
            yield
        except OSError as error:
            if error.errno not in _IN_THE_WAY:
                raise
            raise OutputFolderError(
                "The output cannot be written there. Pass another --out, or change the "
                "permissions of the folder."
            ) from error
