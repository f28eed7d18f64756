"""Where the local Hub keeps files, and, if it has a folder, everything else.

A folder holds `blobs/<2 digits>/<sha256>`, `incoming/` with uploads on their way, and `state.db`,
an SQLite file with one row per repo and per commit. A commit's row has only what it changed.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from local_hub.repos import Blob, Commit, Repo
from local_hub.threads import Discussion

Key = tuple[str, str]

SCHEMA = """
CREATE TABLE IF NOT EXISTS repos(kind TEXT, id TEXT, body TEXT, PRIMARY KEY (kind, id));
CREATE TABLE IF NOT EXISTS commits(
    kind TEXT, id TEXT, sha TEXT, body TEXT, PRIMARY KEY (kind, id, sha)
);
CREATE TABLE IF NOT EXISTS settings(name TEXT PRIMARY KEY, body TEXT);
"""
# Fields that `_repo_row` writes in its own way, or not at all.
_OWN_WAY = frozenset({"commits", "discussions", "lfs_objects", "readers", "cache"})


class Store:
    """The files of a hub, in `folder` or else in a temporary one that goes with the store."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._database: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._saved_commits: dict[Key, set[str]] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                folder / "state.db", timeout=0, check_same_thread=False, isolation_level=None
            )
            # Of two hubs on one folder, the second is refused.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.executescript(f"BEGIN EXCLUSIVE; {SCHEMA} COMMIT;")
            # The rest of uploads that the last hub here did not see the end of.
            for left in (folder / "incoming").glob("*"):
                left.unlink()

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def incoming(self) -> Path:
        """An empty file for an upload, on the same file system as the blobs."""
        folder = self._files / "incoming"
        folder.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            return Path(file.name)

    def keep(self, incoming: Path, sha256: str) -> Path:
        """Move a whole upload to where it stays."""
        path = self._files / "blobs" / sha256[:2] / sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        return incoming.replace(path)

    @property
    def _files(self) -> Path:
        if self._folder is not None:
            return self._folder
        with self._lock:
            if self._temporary is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="local-hub-")
        return Path(self._temporary.name)

    # Repos and settings

    def save(
        self, keys: Iterable[Key], repos: Mapping[Key, Repo], settings: Mapping[str, Any]
    ) -> None:
        """Write what `keys` name, all or nothing; a key without a repo is forgotten."""
        if self._database is None:
            return
        with self._lock, self._database:
            self._database.execute("BEGIN")
            for key in keys:
                repo = repos.get(key)
                if repo is None:
                    self._forget(key)
                else:
                    self._save_repo(repo)
            self._database.executemany(
                "REPLACE INTO settings VALUES (?, ?)",
                [(name, json.dumps(value)) for name, value in settings.items()],
            )

    def load(self) -> tuple[dict[Key, Repo], dict[str, Any]]:
        """Everything that was saved: repos and settings."""
        if self._database is None:
            return {}, {}
        repos: dict[Key, Repo] = {}
        for kind, id_, body in self._database.execute("SELECT * FROM repos ORDER BY rowid"):
            repos[kind, id_] = self._repo_of_row(json.loads(body))
        rows = self._database.execute("SELECT kind, id, sha, body FROM commits ORDER BY rowid")
        for kind, id_, sha, body in rows:
            self._add_commit(repos[kind, id_], sha, json.loads(body))
            self._saved_commits.setdefault((kind, id_), set()).add(sha)
        settings = self._database.execute("SELECT * FROM settings").fetchall()
        return repos, {name: json.loads(body) for name, body in settings}

    def _forget(self, key: Key) -> None:
        assert self._database is not None
        for table in ("repos", "commits"):
            self._database.execute(f"DELETE FROM {table} WHERE kind = ? AND id = ?", key)
        self._saved_commits.pop(key, None)

    def _save_repo(self, repo: Repo) -> None:
        assert self._database is not None
        saved = self._saved_commits.setdefault(repo.key, set())
        for commit in [c for sha, c in repo.commits.items() if sha not in saved]:
            row = json.dumps(self._commit_row(repo, commit))
            self._database.execute(
                "INSERT INTO commits VALUES (?, ?, ?, ?)", (*repo.key, commit.sha, row)
            )
            saved.add(commit.sha)
        self._database.execute(
            "INSERT INTO repos VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
            (*repo.key, json.dumps(self._repo_row(repo))),
        )

    def _repo_row(self, repo: Repo) -> dict[str, Any]:
        row = {f.name: getattr(repo, f.name) for f in fields(repo) if f.name not in _OWN_WAY}
        return row | {
            "readers": sorted(repo.readers),
            "discussions": [asdict(discussion) for discussion in repo.discussions],
            "lfs_objects": [self._blob_row(blob) for blob in repo.lfs_objects.values()],
        }

    def _repo_of_row(self, row: dict[str, Any]) -> Repo:
        blobs = [self._blob_of_row(blob) for blob in row.pop("lfs_objects")]
        discussions = [Discussion(**discussion) for discussion in row.pop("discussions")]
        return Repo(
            **row | {"readers": set(row["readers"])},
            discussions=discussions,
            lfs_objects={blob.sha256: blob for blob in blobs},
        )

    def _commit_row(self, repo: Repo, commit: Commit) -> dict[str, Any]:
        before = repo.commits[commit.parent].files if commit.parent else {}
        changed = {
            name: self._blob_row(blob)
            for name, blob in commit.files.items()
            if before.get(name) is not blob
        }
        gone = [name for name in before if name not in commit.files]
        return {
            "title": commit.title,
            "parent": commit.parent,
            "description": commit.description,
            "author": commit.author,
            "date": commit.date,
            "changed": changed,
            "gone": gone,
        }

    def _add_commit(self, repo: Repo, sha: str, row: dict[str, Any]) -> None:
        parent = row["parent"]
        files = dict(repo.commits[parent].files) if parent else {}
        for name in row.pop("gone"):
            del files[name]
        files |= {name: self._blob_of_row(blob) for name, blob in row.pop("changed").items()}
        repo.add_commit(Commit(sha=sha, files=files, **row))

    def _blob_row(self, blob: Blob) -> list[Any]:
        path = self._files / "blobs" / blob.sha256[:2] / blob.sha256
        if not path.exists():
            incoming = self.incoming()
            with incoming.open("wb") as stream:
                stream.writelines(blob.chunks())
            self.keep(incoming, blob.sha256)
        return [blob.size, blob.git_sha1, blob.sha256, blob.lfs]

    def _blob_of_row(self, row: list[Any]) -> Blob:
        size, git_sha1, sha256, lfs = row
        path = self._files / "blobs" / sha256[:2] / sha256
        return Blob(path, size, git_sha1, sha256, lfs)
