"""The cache of downloaded models: models in use stay, the least recently used are removed.

A model is in use while a process holds its lock file; the system releases the lock when that
process ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CachedRepoInfo, CacheNotFound, scan_cache_dir
from huggingface_hub.file_download import repo_folder_name

__all__ = ["held", "remove_damaged", "remove_partial_downloads", "repo_folder", "trim"]

_LOCKS = ".dynquant-locks"

_logger = logging.getLogger(__name__)


def repo_folder(cache_dir: Path, repo: str) -> Path:
    """The folder in which huggingface_hub keeps the files of `repo`."""
    return cache_dir / repo_folder_name(repo_id=repo, repo_type="model")


def held(cache_dir: Path, repo: str) -> Callable[[], None]:
    """Mark `repo` as in use until the returned function is called or this process ends."""
    descriptor = _open_lock(cache_dir, repo)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.utime(descriptor)
    return lambda: os.close(descriptor)


def remove_partial_downloads(cache_dir: Path, repo: str) -> None:
    """Remove partial files of killed downloads of `repo`, unless another process uses it.

    huggingface_hub starts every download with a new file, so these are never continued.
    """
    with _locked_alone(cache_dir, repo) as alone:
        if alone:
            for path in (repo_folder(cache_dir, repo) / "blobs").glob("*.incomplete"):
                path.unlink(missing_ok=True)


def remove_damaged(path: Path) -> None:
    """Remove a file of a snapshot and its blob, so that it is downloaded again."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def trim(cache_dir: Path, *, max_bytes: int, needed_bytes: int = 0) -> None:
    """Remove the least recently used models until `needed_bytes` more fit in `max_bytes`.

    Models in use are kept, even if the bound is exceeded then.
    """
    try:
        repos = scan_cache_dir(cache_dir).repos
    except CacheNotFound:
        return

    def last_used(repo: CachedRepoInfo) -> float:
        # Many file systems update access times at most once a day; the lock's time is exact.
        lock = _lock(cache_dir, repo.repo_id)
        return max(repo.last_accessed, lock.stat().st_mtime if lock.exists() else 0.0)

    num_bytes = sum(repo.size_on_disk for repo in repos)
    for repo in sorted(repos, key=last_used):
        if num_bytes + needed_bytes <= max_bytes:
            return
        if repo.repo_type != "model":
            continue
        with _locked_alone(cache_dir, repo.repo_id) as alone:
            if not alone:
                continue
            revisions = [each.commit_hash for each in repo.revisions]
            scan_cache_dir(cache_dir).delete_revisions(*revisions).execute()
        num_bytes -= repo.size_on_disk
        _logger.info("Removed %s from the cache to make room", repo.repo_id)


@contextmanager
def _locked_alone(cache_dir: Path, repo: str) -> Iterator[bool]:
    """Whether `repo` is not in use; then it stays unused within this context."""
    descriptor = _open_lock(cache_dir, repo)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone = True
        except BlockingIOError:
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def _open_lock(cache_dir: Path, repo: str) -> int:
    lock = _lock(cache_dir, repo)
    lock.parent.mkdir(parents=True, exist_ok=True)
    return os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)


def _lock(cache_dir: Path, repo: str) -> Path:
    return cache_dir / _LOCKS / f"{repo_folder_name(repo_id=repo, repo_type='model')}.lock"
