from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from dynquant.hub import HubModels, cache
from tests.hub.conftest import tiny_files

REPOS = ("alice/old", "alice/middle", "alice/new")


def cached(cache_dir) -> set[str]:
    return {repo for repo in REPOS if (cache.repo_folder(cache_dir, repo) / "snapshots").is_dir()}


def fill(hub, cache_dir, size: int = 100_000) -> None:
    """Three models of `size` bytes; the first was used longest ago, and none is in use."""
    for age, repo in enumerate(reversed(REPOS)):
        if ("model", repo) not in hub.repos:
            # Blobs are named by content, so each repo gets different content.
            hub.add(repo, tiny_files(**{"vocab.txt": repo.encode().ljust(size, b".")}))
        with HubModels(endpoint=hub.url, cache_dir=cache_dir) as models:
            models.fetch(repo)
        then = time.time() - 10_000 * age
        for path in cache_dir.rglob("*"):
            if repo.replace("/", "--") in str(path) and path.is_file():
                os.utime(path, (then, then))


def test_the_least_recently_used_model_goes_first(hub, tmp_path):
    fill(hub, tmp_path)
    cache.trim(tmp_path, max_bytes=250_000)
    assert cached(tmp_path) == {"alice/middle", "alice/new"}
    cache.trim(tmp_path, max_bytes=250_000, needed_bytes=100_000)
    assert cached(tmp_path) == {"alice/new"}


def test_nothing_goes_while_the_bound_holds(hub, tmp_path):
    fill(hub, tmp_path)
    cache.trim(tmp_path, max_bytes=10**9)
    assert cached(tmp_path) == set(REPOS)


def test_a_model_in_use_never_goes_also_when_another_process_uses_it(hub, tmp_path):
    fill(hub, tmp_path)
    let_go = cache.held(tmp_path, "alice/old")
    hold = (
        "import sys, time; from pathlib import Path; from dynquant.hub import cache\n"
        "cache.held(Path(sys.argv[1]), 'alice/middle'); print(flush=True); time.sleep(3600)"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    cache.trim(tmp_path, max_bytes=0)
    assert cached(tmp_path) == {"alice/old", "alice/middle"}
    let_go()
    other.kill()
    other.wait()
    other.stdout.close()
    cache.trim(tmp_path, max_bytes=0)
    assert cached(tmp_path) == set()


def test_using_a_model_makes_it_the_most_recently_used_one(hub, tmp_path):
    fill(hub, tmp_path)
    with HubModels(endpoint=hub.url, cache_dir=tmp_path) as models:
        models.fetch("alice/old")
    cache.trim(tmp_path, max_bytes=150_000)
    assert cached(tmp_path) == {"alice/old"}


def test_a_bounded_cache_makes_room_before_a_download(hub, tmp_path):
    fill(hub, tmp_path)
    hub.add("alice/next", tiny_files(**{"vocab.txt": b"n" * 100_000}))
    with HubModels(endpoint=hub.url, cache_dir=tmp_path, max_cache_bytes=320_000) as models:
        models.fetch("alice/next")
    assert cached(tmp_path) == {"alice/middle", "alice/new"}


def test_a_cache_that_is_not_there_is_fine(tmp_path):
    cache.trim(tmp_path / "none", max_bytes=0)


def test_what_killed_downloads_left_is_removed_unless_somebody_still_downloads(hub, tmp_path):
    hub.add("alice/new", tiny_files())
    blobs = cache.repo_folder(tmp_path, "alice/new") / "blobs"
    blobs.mkdir(parents=True)
    left = blobs / "abc.12345678.incomplete"
    left.write_bytes(b"half")
    let_go = cache.held(tmp_path, "alice/new")
    cache.remove_partial_downloads(tmp_path, "alice/new")
    assert left.exists()
    let_go()
    with HubModels(endpoint=hub.url, cache_dir=tmp_path) as models:
        models.fetch("alice/new")
    assert not left.exists()


def test_two_processes_may_download_one_model_at_once(hub, tmp_path):
    hub.add("alice/new", tiny_files(**{"vocab.txt": b"x" * 10**6}))
    folders = []

    def fetch() -> None:
        with HubModels(endpoint=hub.url, cache_dir=tmp_path) as models:
            folders.append(models.fetch("alice/new").folder)

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(folders)) == 1
    assert (folders[0] / "vocab.txt").stat().st_size == 10**6
