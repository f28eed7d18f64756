"""Records of the local Hub: repos whose history is a chain of commits of named blobs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from local_hub.threads import Discussion

LFS_SUFFIXES = (".safetensors", ".parquet", ".bin", ".pt", ".gguf")
CONVERTED = "refs/convert/parquet"
# When everything happens unless a hub has a clock, so that a test's answers are the same each day.
DATE = "2026-01-01T00:00:00.000Z"
CHUNK_BYTES = 1 << 20

_committing = threading.Lock()


@dataclass(frozen=True)
class Blob:
    """The content of one file, in memory or on disk.

    Attributes:
        git_sha1: Its hash in git: for a file in LFS, that of its pointer.
        lfs: Whether git has only a pointer to it.
    """

    source: bytes | Path
    size: int
    git_sha1: str
    sha256: str
    lfs: bool = False

    @classmethod
    def of(cls, source: bytes | Path, *, lfs: bool = False) -> Blob:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        sha1, sha256 = hashlib.sha1(b"blob %d\0" % size), hashlib.sha256()
        for chunk in _chunks(source, 0, size):
            sha1.update(chunk)
            sha256.update(chunk)
        if lfs:
            return cls.in_lfs(source, size, sha256.hexdigest())
        return cls(source, size, sha1.hexdigest(), sha256.hexdigest())

    @classmethod
    def in_lfs(cls, source: bytes | Path, size: int, sha256: str) -> Blob:
        pointer = lfs_pointer(sha256, size)
        git_sha1 = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
        return cls(source, size, git_sha1, sha256, lfs=True)

    @property
    def pointer_size(self) -> int:
        return len(lfs_pointer(self.sha256, self.size))

    def read(self, start: int = 0, end: int | None = None) -> bytes:
        return b"".join(self.chunks(start, end))

    def chunks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        return _chunks(self.source, start, self.size if end is None else min(end, self.size))


def _chunks(source: bytes | Path, start: int, end: int) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source[start:end]
        return
    with source.open("rb") as stream:
        stream.seek(start)
        while start < end and (chunk := stream.read(min(CHUNK_BYTES, end - start))):
            start += len(chunk)
            yield chunk


def lfs_pointer(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


@dataclass(frozen=True)
class Commit:
    """A whole tree; `parent` is the sha of the commit before."""

    sha: str
    title: str
    files: Mapping[str, Blob]
    parent: str | None = None
    description: str = ""
    author: str = ""
    date: str = DATE


class StaleParentError(Exception):
    """The branch has moved on since the parent that was named."""


@dataclass
class Repo:
    """A repo with its access rules. `readers` are the users who may read it if not everyone may.

    Attributes:
        hub_id: Stays when the repo is renamed; a new repo of the same name gets another.
        gated: False, "auto" or "manual"; True is "manual".
        card_data: The metadata, if it is not to be read from README.md.
        branches: Name → commit; those that start with `refs/` are conversions and pull requests.
        lfs_objects: sha256 → content of all that was uploaded to LFS, committed or not.
        cache: Values that other modules derive from this repo, and check before use.
    """

    id: str
    kind: str = "model"
    hub_id: str = ""
    private: bool = False
    gated: bool | str = False
    disabled: bool = False
    readers: set[str] = field(default_factory=set)
    card_data: dict[str, Any] | None = None
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    discussions: list[Discussion] = field(default_factory=list)
    lfs_objects: dict[str, Blob] = field(default_factory=dict)
    sdk: str | None = None
    downloads: int = 0
    likes: int = 0
    trending_score: int = 0
    created_at: str = DATE
    last_modified: str = DATE
    cache: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    # Of all repos, so that a list of them knows whether it is still right.
    num_changes: ClassVar[int] = 0

    def __setattr__(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        Repo.num_changes += 1

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.id

    def commit(
        self,
        changes: Mapping[str, bytes | Path | Blob | None],
        *,
        branch: str = "main",
        title: str = "Upload",
        parent: str | None = None,
        description: str = "",
        author: str = "",
        date: str = DATE,
    ) -> Commit:
        """Write files on a branch; None deletes one."""
        blobs = {
            name: content
            if content is None or isinstance(content, Blob)
            else Blob.of(content, lfs=name.endswith(LFS_SUFFIXES))
            for name, content in changes.items()
        }
        with _committing:
            head = self.branches.get(branch)
            if parent is not None and parent != head:
                raise StaleParentError(branch)
            files = dict(self.commits[head].files) if head else {}
            for name, blob in blobs.items():
                if blob is None:
                    del files[name]
                else:
                    files[name] = blob
            commit = Commit(
                sha=self._sha(branch, head or "", title, files),
                title=title,
                files=files,
                parent=head,
                description=description,
                author=author or self.namespace,
                date=date,
            )
            self.add_commit(commit)
            self.branches[branch] = commit.sha
            self.last_modified = max(self.last_modified, date)
        return commit

    def _sha(self, branch: str, head: str, title: str, files: Mapping[str, Blob]) -> str:
        tree = "".join(f"{name}\0{files[name].sha256}\n" for name in sorted(files))
        seed = f"{self.id}\n{branch}\n{head}\n{title}\n{tree}"
        return hashlib.sha1(seed.encode()).hexdigest()

    def add_commit(self, commit: Commit) -> None:
        self.lfs_objects |= {blob.sha256: blob for blob in commit.files.values() if blob.lfs}
        self.commits[commit.sha] = commit

    def squash(self, branch: str, title: str, date: str) -> None:
        """Leave one commit of a branch: what its head holds, without a history."""
        files = self.commits[self.branches[branch]].files
        sha = self._sha(branch, "", title, files)
        self.add_commit(Commit(sha, title, files, author=self.namespace, date=date))
        self.branches[branch] = sha
        self.last_modified = max(self.last_modified, date)

    def at(self, revision: str) -> Commit | None:
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(sha)

    def history(self, commit: Commit | None) -> Iterator[Commit]:
        """A commit and those before it."""
        while commit is not None:
            yield commit
            commit = self.commits[commit.parent] if commit.parent else None

    @property
    def num_stored_bytes(self) -> int:
        return sum(blob.size for blob in self.lfs_objects.values())


def folder_files(folder: Path) -> dict[str, bytes | Path]:
    return {
        str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
