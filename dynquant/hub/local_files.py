"""Files of a folder with the hashes by which the Hub names their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from dynquant.errors import InvalidModelError
from dynquant.sandbox.held_folder import HeldFolder, UnexpectedEntryError

__all__ = ["LocalFile", "changed_meanwhile", "local_files"]

_SHA256_CHARS = 64
_PART_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file and its hashes, which are computed on demand.

    Attributes:
        path: Of the file.
        num_bytes: Its size when it was found.
        may_be_link: Whether `path` may be a link, as in the cache of huggingface_hub.
    """

    path: Path
    num_bytes: int
    may_be_link: bool = True

    @cached_property
    def sha256(self) -> str:
        """The name of its content in LFS."""
        return self._hashed(hashlib.sha256())

    @cached_property
    def git_sha1(self) -> str:
        """The name of its content in git: a hash of a blob's header and the content."""
        header = b"blob %d\0" % self.num_bytes
        return self._hashed(hashlib.sha1(header, usedforsecurity=False))

    def is_called(self, oid: str) -> bool:
        """Whether `oid`, of either kind, names this content."""
        return oid == (self.sha256 if len(oid) == _SHA256_CHARS else self.git_sha1)

    def read(self) -> bytes:
        """Its content.

        Raises:
            InvalidModelError: It has changed since it was found.
        """
        with self._opened() as stream:
            content = stream.read(self.num_bytes + 1)
        if len(content) != self.num_bytes:
            raise changed_meanwhile(self.path.name)
        return content

    def _opened(self) -> BinaryIO:
        if self.may_be_link:
            return self.path.open("rb")
        try:
            with HeldFolder.open(self.path.parent) as folder:
                return folder.file(
                    self.path.name, max_bytes=self.num_bytes, may_have_other_names=True
                )
        except (UnexpectedEntryError, FileNotFoundError) as error:
            raise changed_meanwhile(self.path.name) from error

    def _hashed(self, digest: hashlib._Hash) -> str:
        with self._opened() as stream:
            while part := stream.read(_PART_BYTES):
                digest.update(part)
        return digest.hexdigest()


def local_files(folder: Path) -> dict[str, LocalFile]:
    """Name within `folder` → file; hidden files are left out.

    Raises:
        InvalidModelError: There is a link in it, which might lead to a private file.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.is_symlink():
            raise InvalidModelError(
                f"'{name}' is a link, and dynquant publishes only files. Replace it with the file."
            )
        if path.is_file():
            files[name.as_posix()] = LocalFile(
                path=path, num_bytes=path.lstat().st_size, may_be_link=False
            )
    return files


def changed_meanwhile(name: str) -> InvalidModelError:
    """The error for a file that changes while it is published."""
    return InvalidModelError(
        f"'{name}' changed while the folder was being published. Publish again once nothing writes "
        "to the folder any more."
    )
