"""Finished folders on disk: staged beside their place, renamed into it when whole."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from dynquant.errors import OutputFolderError, StorageFullError

__all__ = ["MARKER", "OutputFolders"]

MARKER = "dynquant/plan.json"
"""A folder that has this file was made by dynquant."""


class OutputFolders:
    """Folders below `root`; implements `ports.OutputStore`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def check(self, names: Sequence[str]) -> None:
        """Refuse before any work when one of the folders could not be made.

        Raises:
            OutputFolderError: Something that is not ours is in the way.
        """
        if self._root.exists() and not self._root.is_dir():
            raise OutputFolderError(
                f"'{self._root}' is a file, so no folder can be made there. Pass another --out."
            )
        if self._root.is_dir():
            foreign = [entry.name for entry in sorted(self._root.iterdir()) if not _is_ours(entry)]
            if foreign:
                raise OutputFolderError(
                    f"'{self._root}' holds '{foreign[0]}', which dynquant did not make. "
                    "Pass a new folder to --out, or one that dynquant made before."
                )
        for name in names:
            target = self.final(name)
            if target.exists() and not _is_ours(target):
                raise OutputFolderError(
                    f"'{target}' exists and dynquant did not make it. Pass another --out."
                )

    @contextmanager
    def staged(self, names: Sequence[str]) -> Iterator[Mapping[str, Path]]:
        """Name → an empty folder; they take their final names together, or none stays.

        Raises:
            OutputFolderError: See `check`.
            StorageFullError: The disk is full or cannot be written.
        """
        self.check(names)
        created_root = not self._root.exists()
        folders = {name: self._root / f".{name}.partial" for name in names}
        try:
            with _translated():
                for folder in folders.values():
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir(parents=True)
            yield folders
            with _translated():
                for name, folder in folders.items():
                    self._replace(folder, self.final(name))
        finally:
            for folder in folders.values():
                shutil.rmtree(folder, ignore_errors=True)
            if created_root and self._root.is_dir() and not any(self._root.iterdir()):
                self._root.rmdir()

    def write_text(self, folder: Path, name: str, content: str) -> None:
        """Write file `name` into a staged folder.

        Raises:
            StorageFullError: The disk is full or cannot be written.
        """
        with _translated():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")

    def final(self, name: str) -> Path:
        """Where the finished folder is."""
        return self._root / name

    def _replace(self, folder: Path, target: Path) -> None:
        """Move `folder` to `target`; an older one goes only once the new one is there."""
        old = target.with_name(f".{target.name}.old.partial")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        folder.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _is_ours(entry: Path) -> bool:
    if entry.name.startswith(".") and (entry.name.endswith(".partial") or entry.is_file()):
        return True
    return (entry / MARKER).is_file()


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO}:
            raise StorageFullError(
                "The disk is full or cannot be written, so nothing was kept. Free some space, "
                "or choose another --out, and run the same command again."
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.ENOTDIR}:
            raise OutputFolderError(
                "The output folder cannot be written. Pass another --out, or change its "
                "permissions."
            ) from error
        raise
