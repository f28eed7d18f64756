"""What the local Hub stores: repos whose history is a chain of commits of named blobs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt", ".gguf")
CONVERTED = "refs/convert/parquet"


@dataclass(frozen=True)
class Blob:
    """The content of one file, in memory or on disk."""

    source: bytes | Path
    size: int
    git_sha1: str
    sha256: str

    @classmethod
    def of(cls, source: bytes | Path) -> Blob:
        content = source if isinstance(source, bytes) else source.read_bytes()
        return cls(
            source=source,
            size=len(content),
            git_sha1=hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
            sha256=hashlib.sha256(content).hexdigest(),
        )

    def read(self, start: int, end: int) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[start:end]
        with self.source.open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)


@dataclass(frozen=True)
class Commit:
    """A whole tree; `parent` is the sha of the commit before."""

    sha: str
    title: str
    files: Mapping[str, Blob]
    parent: str | None = None


class StaleParentError(Exception):
    """The branch has moved on since the parent that was named."""


@dataclass
class Repo:
    """A repo with its access rules. `readers` are the users who may read it if not everyone may."""

    id: str
    kind: str = "model"
    private: bool = False
    gated: bool = False
    disabled: bool = False
    readers: set[str] = field(default_factory=set)
    card_data: dict[str, Any] | None = None
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    def commit(
        self,
        changes: Mapping[str, bytes | Path | Blob | None],
        *,
        branch: str = "main",
        title: str = "Upload",
        parent: str | None = None,
    ) -> Commit:
        """Write files on a branch; None deletes one."""
        head = self.branches.get(branch)
        if parent is not None and parent != head:
            raise StaleParentError(branch)
        files = dict(self.commits[head].files) if head else {}
        for name, content in changes.items():
            if content is None:
                del files[name]
            else:
                files[name] = content if isinstance(content, Blob) else Blob.of(content)
        tree = "".join(f"{name}\0{files[name].sha256}\n" for name in sorted(files))
        sha = hashlib.sha1(f"{self.id}\n{branch}\n{head}\n{title}\n{tree}".encode()).hexdigest()
        self.commits[sha] = Commit(sha=sha, title=title, files=files, parent=head)
        self.branches[branch] = sha
        return self.commits[sha]

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))

    def may_read(self, user: str | None) -> bool:
        return user is not None and (user in self.readers or user == self.id.split("/")[0])

    @property
    def is_listed_for_all(self) -> bool:
        return not self.private


def is_lfs(name: str) -> bool:
    return name.endswith(LFS_SUFFIXES)


def folder_files(folder: Path) -> dict[str, bytes | Path]:
    return {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
