"""Files of a folder under the names that the Hub gives their content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dynquant.errors import InvalidModelError

__all__ = ["LocalFile", "local_files"]

_SHA256_CHARS = 64
_PART_BYTES = 1 << 22


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file to publish; hashes are computed when asked for."""

    path: Path
    num_bytes: int

    @cached_property
    def sha256(self) -> str:
        """Name of its content in LFS."""
        return self._hashed(hashlib.sha256())

    @cached_property
    def git_sha1(self) -> str:
        """Name of its content in git: of a blob's header and the content."""
        header = b"blob %d\0" % self.num_bytes
        return self._hashed(hashlib.sha1(header, usedforsecurity=False))

    def is_called(self, oid: str) -> bool:
        """Whether `oid`, of either kind, names this content."""
        return oid == (self.sha256 if len(oid) == _SHA256_CHARS else self.git_sha1)

    def _hashed(self, digest: hashlib._Hash) -> str:
        with self.path.open("rb") as stream:
            while part := stream.read(_PART_BYTES):
                digest.update(part)
        return digest.hexdigest()


def local_files(folder: Path) -> dict[str, LocalFile]:
    """Name within `folder` → file; hidden files are left out.

    Raises:
        InvalidModelError: There is a link in it, which might lead to something private.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.is_symlink():
            raise InvalidModelError(
                f"'{name}' is a link, and dynquant publishes only files. Put the file in its place."
            )
        if path.is_file():
            files[name.as_posix()] = LocalFile(path=path, num_bytes=path.stat().st_size)
    return files
