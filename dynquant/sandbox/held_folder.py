"""A folder held by its descriptor, for places that another process may write to as well.

Every name is looked up in the folder that is held, never along a path, so nothing that is swapped
meanwhile leads elsewhere: links are not followed, only plain files of one name are read, and a file
that is written is a new one. Works on Linux and macOS.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO

__all__ = ["STAGED", "HeldFolder", "UnexpectedEntryError"]

STAGED = ".dynquant-partial"
"""Ends the name of a file that is not whole yet."""

_MAX_STAGED_NAME_CHARS = 100
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Without O_NONBLOCK opening a pipe waits until another process writes to it.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OWN_MODE = 0o700
_BATCH = 1_000
_MAX_BATCHES = 100_000
"""To remove. A folder that has entries even then is being filled by another process."""

_NOT_PLAIN = frozenset(
    {
        errno.ELOOP,  # a link
        errno.EMLINK,  # the same, on some systems
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENXIO,  # a socket
        errno.ENODEV,
        errno.EACCES,
        errno.EPERM,
    }
)


class UnexpectedEntryError(Exception):
    """An entry of a folder is not what it has to be: a link, a pipe, too large, too many."""


class HeldFolder:
    """A folder and its descriptor; a context that closes it."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @staticmethod
    def open(path: Path, *names: str) -> HeldFolder:
        """The folder that `names` lead to, one in the other, from the trusted `path` on.

        Raises:
            OSError: There is no folder at `path`.
            FileNotFoundError, UnexpectedEntryError: As for `folder`.
        """
        held = HeldFolder(os.open(path, _FOLDER))
        for name in names:
            with held:
                inner = held.folder(name)
            held = inner
        return held

    def __enter__(self) -> HeldFolder:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._descriptor)

    def folder(self, name: str, *, make: bool = False) -> HeldFolder:
        """The folder `name` in this one.

        Args:
            name: One component of a path, as in every method.
            make: Make it if there is none.

        Raises:
            FileNotFoundError: There is none.
            UnexpectedEntryError: It is a link, or no folder.
        """
        if make:
            with suppress(FileExistsError):
                os.mkdir(_component(name), dir_fd=self._descriptor)
        return HeldFolder(self._opened(name, _FOLDER | os.O_NOFOLLOW))

    def has(self, name: str) -> bool:
        """Whether there is anything of that name."""
        try:
            os.lstat(_component(name), dir_fd=self._descriptor)
        except FileNotFoundError:
            return False
        return True

    def names(self, *, at_most: int) -> list[str]:
        """Names of what lies in this folder, sorted.

        Raises:
            UnexpectedEntryError: There are more than `at_most`.
        """
        found: list[str] = []
        with os.scandir(self._descriptor) as entries:
            for entry in entries:
                found.append(entry.name)
                if len(found) > at_most:
                    raise UnexpectedEntryError(f"more than {at_most} entries")
        return sorted(found)

    def file(self, name: str, *, max_bytes: int, may_have_other_names: bool = False) -> BinaryIO:
        """A plain file, opened to read.

        Args:
            name: Its name in this folder.
            max_bytes: Its largest size.
            may_have_other_names: Whether a hard link will do, which may stand for any file.

        Raises:
            FileNotFoundError: There is none.
            UnexpectedEntryError: It is something else, or larger.
        """
        descriptor = self._opened(name, _FILE)
        about = os.fstat(descriptor)
        why = None
        if not stat.S_ISREG(about.st_mode):
            why = "no plain file"
        elif about.st_nlink != 1 and not may_have_other_names:
            why = "a file of several names"
        elif about.st_size > max_bytes:
            why = f"larger than {max_bytes:,} bytes"
        if why is not None:
            os.close(descriptor)
            raise UnexpectedEntryError(f"{name!r:.100} is {why}")
        return os.fdopen(descriptor, "rb")

    def read_text(self, name: str, *, max_bytes: int) -> str | None:
        """Contents of a plain file; None if there is none.

        Raises:
            UnexpectedEntryError: See `file`; or it is no UTF-8.
        """
        try:
            with self.file(name, max_bytes=max_bytes) as stream:
                content = stream.read(max_bytes + 1)  # it may still grow
        except FileNotFoundError:
            return None
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise UnexpectedEntryError(f"{name!r:.100} is no text") from error
        if len(content) > max_bytes:
            raise UnexpectedEntryError(f"{name!r:.100} is larger than {max_bytes:,} bytes")
        return text

    @contextmanager
    def written(self, name: str) -> Iterator[TextIO]:
        """A stream of text that becomes the file `name` when the context ends without an error."""
        staged = f".{name[:_MAX_STAGED_NAME_CHARS]}.{secrets.token_hex(8)}{STAGED}"
        stream = os.fdopen(self.new_file(staged), "w", encoding="utf-8")
        try:
            with stream:
                yield stream
            self.move(staged, self, name)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(staged, dir_fd=self._descriptor)

    def write_text(self, name: str, content: str) -> None:
        """Write the file `name` whole or not at all."""
        with self.written(name) as stream:
            stream.write(content)

    def new_file(self, name: str) -> int:
        """Descriptor of the new file `name`, to write.

        Raises:
            FileExistsError: There is something of that name, be it a link to nowhere.
        """
        return os.open(_component(name), _NEW_FILE, 0o666, dir_fd=self._descriptor)

    def move(self, name: str, target: HeldFolder, new_name: str) -> None:
        """Give what is called `name` another place; a file replaces the file that was there."""
        os.replace(
            _component(name),
            _component(new_name),
            src_dir_fd=self._descriptor,
            dst_dir_fd=target._descriptor,
        )

    def remove(self, name: str) -> None:
        """Remove a file, a link or a whole tree, however deep and whatever its permissions.

        Raises:
            OSError: Something cannot be removed.
        """
        try:
            os.unlink(_component(name), dir_fd=self._descriptor)
        except FileNotFoundError:
            return
        except (IsADirectoryError, PermissionError):  # macOS answers the latter for a folder
            with self._unlocked(name) as folder:
                folder.clear()
            os.rmdir(name, dir_fd=self._descriptor)

    def clear(self) -> None:
        """Remove all that lies in this folder.

        Folders within folders are moved up to this one first: recursion, or a descriptor for each
        level, would end at the thousandth.
        """
        for name, is_folder in self._entries_until_empty():
            if not is_folder:
                os.unlink(name, dir_fd=self._descriptor)
                continue
            with self._unlocked(name) as inner:
                self._take_all_of(inner)
            os.rmdir(name, dir_fd=self._descriptor)

    def _take_all_of(self, inner: HeldFolder) -> None:
        """Remove the files of a folder in this one, and move its folders here."""
        for name, is_folder in inner._entries_until_empty():
            if is_folder:
                inner._unlocked(name).close()
                inner.move(name, self, secrets.token_hex(16))
            else:
                inner.remove(name)

    def _entries_until_empty(self) -> Iterator[tuple[str, bool]]:
        """Name of each entry, which is then removed, and whether it is a folder."""
        for _ in range(_MAX_BATCHES):
            with os.scandir(self._descriptor) as entries:
                batch = [
                    (entry.name, entry.is_dir(follow_symlinks=False))
                    for entry in islice(entries, _BATCH)
                ]
            if not batch:
                return
            yield from batch
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))

    def _unlocked(self, name: str) -> HeldFolder:
        """The folder `name`, which its owner may list and change."""
        mode = os.lstat(name, dir_fd=self._descriptor).st_mode
        if stat.S_ISDIR(mode) and mode & _OWN_MODE != _OWN_MODE:
            follows = os.chmod not in os.supports_follow_symlinks  # as on Linux
            os.chmod(name, _OWN_MODE, dir_fd=self._descriptor, follow_symlinks=follows)
        return self.folder(name)

    def _opened(self, name: str, flags: int) -> int:
        try:
            return os.open(_component(name), flags, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno not in _NOT_PLAIN:
                raise
            raise UnexpectedEntryError(f"{name!r:.100} cannot be opened as what it is") from error


def _component(name: str) -> str:
    """`name`, which leads nowhere but to an entry of a folder."""
    if name in {"", ".", ".."} or "/" in name or "\0" in name:
        raise UnexpectedEntryError(f"{name!r:.100} is no name of a file")
    return name
