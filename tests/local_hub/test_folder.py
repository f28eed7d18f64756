"""A hub that keeps everything in a folder, and the command that serves one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from local_hub import LocalHub
from tests.local_hub.conftest import TOKEN
from tests.waiting import PATIENCE_SECS

pytestmark = pytest.mark.hub

REPO = "alice/tiny"
ROOT = Path(__file__).parents[2]
SERVE = [sys.executable, "-m", "local_hub"]


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [*SERVE, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def refused(*arguments: str) -> str:
    """The message of the command instead of serving."""
    done = subprocess.run(
        [*SERVE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert done.stdout == ""
    return done.stderr


def add(path: str, content: bytes = b"x") -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


def everything(hub: LocalHub) -> dict[str, object]:
    return {
        repo_id: {
            "attributes": (repo.private, repo.gated, repo.likes, repo.readers, repo.card_data),
            "refs": (repo.branches, repo.tags),
            "commits": [
                (c.sha, c.title, c.description, c.author, c.date, c.parent)
                for c in repo.commits.values()
            ],
            "files": {
                sha: {name: (b.read(), b.git_sha1, b.lfs) for name, b in commit.files.items()}
                for sha, commit in repo.commits.items()
            },
            "discussions": repo.discussions,
            "uploaded": sorted(repo.lfs_objects),
        }
        for (_, repo_id), repo in hub.repos.items()
    }


def test_a_hub_goes_on_where_it_ended(tmp_path, talk_to):
    with LocalHub(tmp_path) as hub:
        hub.add_user("alice", token=TOKEN, orgs={"team": "write"})
        hub.expired_tokens.add("hf_old")
        talk_to(hub)
        alice = HfApi(endpoint=hub.url, token=TOKEN)
        alice.create_repo("team/old", private=True)
        alice.create_commit(
            "team/old", [add("w.safetensors", os.urandom(500)), add("a")], commit_message="One"
        )
        alice.create_tag("team/old", tag="v1")
        alice.create_commit(
            "team/old", [CommitOperationDelete("a"), add("b")], commit_message="Two", create_pr=True
        )
        alice.move_repo("team/old", "team/new")
        alice.create_repo("alice/gone")
        alice.delete_repo("alice/gone")
        # Changes by a test, without a request, are kept as well.
        hub.add("bob/x", {"a.txt": b"a"}, kind="dataset", readers={"alice"}, card_data={"x": 1})
        hub.repos["model", "team/new"].likes = 7
        before = everything(hub)

    with LocalHub(tmp_path) as hub:
        talk_to(hub)
        assert everything(hub) == before
        assert set(hub.repos) == {("model", "team/new"), ("dataset", "bob/x")}
        alice = HfApi(endpoint=hub.url, token=TOKEN)
        assert alice.model_info("team/old").id == "team/new"
        assert hub.expired_tokens == {"hf_old"}
        alice.merge_pull_request("team/new", 1)
        assert alice.file_exists("team/new", "b")


def test_a_hub_without_a_folder_leaves_nothing(tmp_path, monkeypatch, talk_to):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with LocalHub() as hub:
        hub.add_user("alice", token=TOKEN)
        talk_to(hub)
        alice = HfApi(endpoint=hub.url, token=TOKEN)
        alice.create_repo(REPO)
        alice.create_commit(REPO, [add("w.safetensors")], commit_message="One")
        assert list(tmp_path.iterdir()) != []
    assert list(tmp_path.iterdir()) == []


def test_a_hub_comes_back_at_the_same_address(tmp_path):
    with LocalHub(tmp_path) as first:
        port = int(first.url.rpartition(":")[2])
    with LocalHub(tmp_path, port=port) as second:
        assert second.url == first.url


def test_two_hubs_cannot_have_one_folder(tmp_path):
    with LocalHub(tmp_path):
        assert "Another local hub has this folder open" in refused("--folder", str(tmp_path))


def test_the_date_of_a_commit_is_the_clocks(talk_to):
    with LocalHub(clock=lambda: datetime(2026, 5, 6, 7, 8, 9, 10_000, tzinfo=UTC)) as hub:
        hub.add_user("alice", token=TOKEN)
        talk_to(hub)
        alice = HfApi(endpoint=hub.url, token=TOKEN)
        alice.create_repo(REPO)
        assert hub.repos["model", REPO].created_at == "2026-05-06T07:08:09.010Z"
        assert alice.list_repo_commits(REPO)[0].created_at.year == 2026


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_told_to_end(end, client_home):
    with serving() as (url, process):
        api = HfApi(endpoint=url, token="hf_local")
        told = api.whoami()
        assert (told["name"], [org["name"] for org in told["orgs"]]) == ("you", ["team"])
        api.create_repo("team/x")
        process.send_signal(end)
        assert process.wait(PATIENCE_SECS) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_what_was_answered_survives_a_kill(tmp_path, client_home):
    weights = os.urandom(1000)
    with serving("--folder", str(tmp_path)) as (url, process):
        api = HfApi(endpoint=url, token="hf_local")
        api.create_repo("you/x")
        api.create_commit("you/x", [add("w.safetensors", weights)], commit_message="One")
        process.kill()
    (tmp_path / "incoming" / "half").write_bytes(b"of an upload")
    with LocalHub(tmp_path) as hub:
        repo = hub.repos["model", "you/x"]
        assert repo.commits[repo.branches["main"]].files["w.safetensors"].read() == weights
        assert list((tmp_path / "incoming").iterdir()) == []


def test_the_command_says_what_to_do_when_it_cannot_serve():
    with LocalHub() as hub:
        said = refused("--port", hub.url.rpartition(":")[2])
    assert said == (
        "No local hub here (Address already in use): choose another --port or --folder.\n"
    )
    assert "--port is a number from 0 to 65535." in refused("--port", "70000")
