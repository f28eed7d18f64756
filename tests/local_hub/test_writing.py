from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from local_hub import LocalHub

pytestmark = pytest.mark.hub

REPO = "alice/tiny"
Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
KINDS = ["model", "dataset", "space"]


def add(path: str, content: bytes = b"x") -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)


def write_folder(folder: Path) -> dict[str, bytes]:
    files = {
        "README.md": b"---\nlicense: mit\n---\n# Tiny\n",
        "config.json": b"{}",
        "model-1.safetensors": os.urandom(100_000),
        "model-2.safetensors": os.urandom(250_001),
        "empty.bin": b"",
        "binary.dat": b"\0\1\2",
        "in a folder/\u00fc \u2713.txt": "naïve".encode(),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return files


def contents(folder: Path | str) -> dict[str, bytes]:
    root = Path(folder)
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


# Repos


@pytest.mark.parametrize("kind", KINDS)
def test_a_repo_is_created_with_a_first_commit(hub, alice: HfApi, kind):
    sdk = "gradio" if kind == "space" else None
    url = alice.create_repo("tiny", repo_type=kind, space_sdk=sdk)
    assert (url.repo_id, url.repo_type) == ("alice/tiny", kind)
    assert alice.list_repo_files("alice/tiny", repo_type=kind) == [".gitattributes"]
    with pytest.raises(HfHubHTTPError, match="You already created"):
        alice.create_repo("tiny", repo_type=kind, space_sdk=sdk)
    again = alice.create_repo("alice/tiny", repo_type=kind, space_sdk=sdk, exist_ok=True)
    assert again == url


def test_a_repo_may_be_private_and_change_that(hub, alice: HfApi, nobody: HfApi):
    alice.create_repo(REPO, private=True)
    assert not nobody.repo_exists(REPO)
    alice.update_repo_settings(REPO, private=False, gated="auto")
    assert nobody.model_info(REPO).gated == "auto"
    alice.update_repo_settings(REPO, gated=False)
    assert nobody.model_info(REPO).gated is False


def test_a_deleted_repo_is_gone(hub, alice: HfApi):
    alice.create_repo(REPO)
    alice.delete_repo(REPO)
    assert not alice.repo_exists(REPO)
    with pytest.raises(RepositoryNotFoundError):
        alice.delete_repo(REPO)
    alice.delete_repo(REPO, missing_ok=True)


def test_a_moved_repo_is_found_by_its_old_name(hub, alice: HfApi):
    alice.create_repo(REPO)
    alice.create_repo("team/there")
    with pytest.raises(HfHubHTTPError, match="409"):
        alice.move_repo(REPO, "team/there")
    alice.move_repo(REPO, "team/new")
    assert alice.model_info(REPO).id == "team/new"
    alice.upload_file(repo_id=REPO, path_in_repo="a.txt", path_or_fileobj=b"1")
    assert alice.file_exists("team/new", "a.txt")
    alice.create_repo(REPO)  # the name is free again
    assert alice.model_info(REPO).id == REPO
    alice.delete_repo(REPO)
    alice.move_repo("team/new", REPO)
    alice.delete_repo(REPO)
    assert not alice.repo_exists("team/new")


@pytest.mark.parametrize("name", ["x.git", "a--b", "-x", "a b"])
def test_names_that_no_repo_may_have(hub, http: httpx2.Client, name):
    answer = http.post("/api/repos/create", json={"name": name, "organization": None})
    assert (answer.status_code, answer.json()["error"]) == (400, f"Invalid repo name: alice/{name}")


def test_a_space_needs_an_sdk(http: httpx2.Client):
    answer = http.post("/api/repos/create", json={"name": "x", "type": "space"})
    assert (answer.status_code, "sdk" in answer.json()["error"]) == (400, True)


# Branches and tags


def test_branches_come_and_go(hub, alice: HfApi):
    alice.create_repo(REPO)
    first = alice.model_info(REPO).sha
    alice.create_commit(REPO, [add("a.txt")], commit_message="Second")
    alice.create_branch(REPO, branch="dev/one", revision=first)
    assert alice.model_info(REPO, revision="dev/one").sha == first
    alice.create_commit(REPO, [add("b.txt")], commit_message="On dev", revision="dev/one")
    assert not alice.file_exists(REPO, "b.txt")
    with pytest.raises(HfHubHTTPError, match="409"):
        alice.create_branch(REPO, branch="dev/one")
    alice.create_branch(REPO, branch="dev/one", exist_ok=True)
    alice.delete_branch(REPO, branch="dev/one")
    with pytest.raises(RevisionNotFoundError):
        alice.delete_branch(REPO, branch="dev/one")
    with pytest.raises(BadRequestError):
        alice.delete_branch(REPO, branch="main")


def test_tags_come_and_go(hub, alice: HfApi):
    alice.create_repo(REPO)
    first = alice.model_info(REPO).sha
    alice.create_tag(REPO, tag="v1")
    alice.create_commit(REPO, [add("a.txt")], commit_message="Second")
    assert alice.model_info(REPO, revision="v1").sha == first
    with pytest.raises(HfHubHTTPError, match="409"):
        alice.create_tag(REPO, tag="v1")
    alice.create_tag(REPO, tag="v1", exist_ok=True)
    alice.delete_tag(REPO, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        alice.delete_tag(REPO, tag="v1")


def test_a_squashed_branch_has_one_commit(hub, alice: HfApi):
    alice.create_repo(REPO)
    alice.create_commit(REPO, [add("a.txt")], commit_message="Second")
    files = alice.list_repo_files(REPO)
    alice.super_squash_history(REPO, commit_message="All")
    assert [commit.title for commit in alice.list_repo_commits(REPO)] == ["All"]
    assert alice.list_repo_files(REPO) == files


# Commits


@pytest.mark.parametrize("part_bytes", [20_000_000, 100_000])
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_comes_back_byte_for_byte(hub, alice: HfApi, tmp_path, kind, part_bytes):
    hub.part_bytes = part_bytes
    folder = tmp_path / "folder"
    files = write_folder(folder)
    alice.create_repo(REPO, repo_type=kind, space_sdk="static" if kind == "space" else None)
    done = alice.upload_folder(
        repo_id=REPO, repo_type=kind, folder_path=folder, commit_message="All of it"
    )
    assert done.oid == alice.repo_info(REPO, repo_type=kind).sha
    back = contents(snapshot_download(REPO, repo_type=kind, cache_dir=tmp_path / "cache"))
    assert back.pop(".gitattributes")
    assert back == files
    listed = {f.path: f for f in alice.list_repo_tree(REPO, repo_type=kind, recursive=True)}
    in_lfs = {path for path, item in listed.items() if getattr(item, "lfs", None)}
    assert in_lfs == {"model-1.safetensors", "model-2.safetensors", "binary.dat"}
    num_parts = 1 + 3 if part_bytes == 100_000 else 0
    assert len(hub.asked("PUT /lfs/[^/]+/")) == (num_parts - 1 if num_parts else 0)


def test_what_is_there_already_is_not_sent_again(hub, alice: HfApi, tmp_path):
    write_folder(tmp_path)
    alice.create_repo(REPO)
    first = alice.upload_folder(repo_id=REPO, folder_path=tmp_path)
    hub.requests.clear()
    again = alice.upload_folder(repo_id=REPO, folder_path=tmp_path)
    assert again.oid == first.oid
    assert hub.asked("PUT|commit/") == []
    content = (tmp_path / "model-1.safetensors").read_bytes()
    alice.create_commit(REPO, [add("copy.safetensors", content)], commit_message="Copy")
    assert hub.asked("PUT") == []


def test_one_commit_adds_copies_and_deletes(hub, alice: HfApi):
    files = {"a.txt": b"a", "d/1.txt": b"1", "d/2.txt": b"2", "w.safetensors": b"w"}
    hub.add(REPO, files)
    operations: list[Operation] = [
        add("new.txt", b"new"),
        CommitOperationCopy("w.safetensors", "v.safetensors"),
        CommitOperationCopy("a.txt", "b.txt"),
        CommitOperationDelete("a.txt"),
        CommitOperationDelete("d/", is_folder=True),
    ]
    done = alice.create_commit(
        REPO, operations, commit_message="Much", commit_description="At once"
    )
    files_now = hub.repos["model", REPO].commits[done.oid].files
    assert {name: blob.read() for name, blob in files_now.items()} == {
        "w.safetensors": b"w",
        "v.safetensors": b"w",
        "b.txt": b"a",
        "new.txt": b"new",
    }
    (newest, _) = alice.list_repo_commits(REPO)
    assert (newest.title, newest.message, newest.authors) == ("Much", "At once", ["alice"])


def test_a_commit_whose_parent_is_not_the_head_is_refused(hub, alice: HfApi):
    repo = hub.add(REPO, {"a.txt": b"a"})
    stale = repo.branches["main"]
    alice.create_commit(REPO, [add("b.txt")], commit_message="B", parent_commit=stale)
    head = repo.branches["main"]
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        alice.create_commit(REPO, [add("c.txt")], commit_message="C", parent_commit=stale)
    assert caught.value.response.status_code == 412
    assert repo.branches["main"] == head
    alice.create_commit(REPO, [add("c.txt")], commit_message="C", parent_commit=head[:8])


def test_of_two_commits_at_once_one_wins(hub, alice: HfApi):
    repo = hub.add(REPO, {"a.txt": b"a"})
    parent = repo.branches["main"]
    start = threading.Barrier(2)
    outcomes: list[str] = []

    def commit(name: str) -> None:
        start.wait()
        try:
            alice.create_commit(REPO, [add(name)], commit_message=name, parent_commit=parent)
            outcomes.append("done")
        except HfHubHTTPError as error:
            outcomes.append(str(error.response.status_code))

    threads = [threading.Thread(target=commit, args=(f"{i}.txt",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["412", "done"]
    assert len(alice.list_repo_commits(REPO)) == 2


def test_a_commit_happens_as_a_whole_or_not_at_all(hub, alice: HfApi):
    repo = hub.add(REPO, {"a.txt": b"a"})
    head = repo.branches["main"]
    operations: list[Operation] = [add("b.txt"), CommitOperationDelete("none.txt")]
    with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
        alice.create_commit(REPO, operations, commit_message="Half")
    assert repo.branches["main"] == head


def commit_lines(*operations: tuple[str, dict]) -> bytes:
    header = ("header", {"summary": "By hand", "description": ""})
    return b"\n".join(
        json.dumps({"key": key, "value": value}).encode() for key, value in (header, *operations)
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "must be a header with a summary"),
        (b"not json", "must be JSON"),
        (b'{"key": "header", "value": 7}', "must be JSON"),
        (b'{"key": "header", "value": {"summary": ""}}', "must be a header with a summary"),
        (commit_lines(("moon", {})), "does not know the operation 'moon'"),
        (commit_lines(("file", {"path": "../x", "content": ""})), "cannot be the path"),
        (commit_lines(("file", {"path": "a//x", "content": ""})), "cannot be the path"),
        (commit_lines(("file", {"path": "/x", "content": ""})), "cannot be the path"),
        (
            commit_lines(("file", {"path": "x", "content": "%", "encoding": "base64"})),
            "is not base64",
        ),
        (
            commit_lines(
                (
                    "file",
                    {
                        "path": "x",
                        "encoding": "base64",
                        "content": base64.b64encode(bytes(10**7 + 1)).decode(),
                    },
                )
            ),
            "larger than 10 MB",
        ),
        (
            commit_lines(("lfsFile", {"path": "w", "algo": "sha256", "oid": "0" * 64, "size": 1})),
            "LFS pointer pointed to a file that does not exist. Offending file: w",
        ),
    ],
)
def test_a_commit_that_makes_no_sense_is_refused(hub, http: httpx2.Client, body, words):
    repo = hub.add(REPO, {"a": b"0"})
    answer = http.post(f"/api/models/{REPO}/commit/main", content=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]
    assert len(repo.commits) == 1


def test_a_commit_on_a_branch_that_there_is_not_is_refused(hub, http: httpx2.Client):
    hub.add(REPO, {"a": b"0"})
    answer = http.post(f"/api/models/{REPO}/commit/dev", content=commit_lines())
    assert answer.headers["x-error-code"] == "RevisionNotFound"


def test_what_a_gitignore_names_is_left_out(hub, alice: HfApi, tmp_path):
    alice.create_repo(REPO)
    for name in (".gitignore", "a.log", "b.txt", "cache/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("*.log\n# no comment\ncache/\n")
    alice.upload_folder(repo_id=REPO, folder_path=tmp_path)
    assert set(alice.list_repo_files(REPO)) == {".gitattributes", ".gitignore", "b.txt"}


# Large files


def start_upload(http: httpx2.Client, content: bytes, size: int | None = None) -> dict:
    oid = hashlib.sha256(content).hexdigest()
    answer = http.post(
        f"/{REPO}.git/info/lfs/objects/batch",
        json={
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "objects": [{"oid": oid, "size": len(content) if size is None else size}],
        },
    )
    assert answer.status_code == 200
    (found,) = answer.json()["objects"]
    return found


def commit_lfs(http: httpx2.Client, content: bytes) -> httpx2.Response:
    oid = hashlib.sha256(content).hexdigest()
    lines = commit_lines(("lfsFile", {"path": "w.bin", "oid": oid, "size": len(content)}))
    return http.post(f"/api/models/{REPO}/commit/main", content=lines)


def test_an_upload_is_there_only_when_its_content_is_what_was_announced(hub, http: httpx2.Client):
    hub.add(REPO, {"a": b"0"})
    actions = start_upload(http, b"content")["actions"]
    verify = {"oid": hashlib.sha256(b"content").hexdigest(), "size": 7}
    assert httpx2.put(actions["upload"]["href"], content=b"tampered").status_code == 400
    assert http.post(actions["verify"]["href"], json=verify).status_code == 404
    assert commit_lfs(http, b"content").status_code == 400
    assert httpx2.put(actions["upload"]["href"], content=b"content").status_code == 200
    assert http.post(actions["verify"]["href"], json=verify).status_code == 200
    assert "actions" not in start_upload(http, b"content")
    assert commit_lfs(http, b"content").status_code == 200


def test_an_upload_of_the_wrong_size_is_refused(hub, http: httpx2.Client):
    hub.add(REPO, {"a": b"0"})
    url = start_upload(http, b"content", size=8)["actions"]["upload"]["href"]
    assert httpx2.put(url, content=b"content").status_code == 400


def test_half_an_upload_is_never_seen(hub: LocalHub, http: httpx2.Client):
    repo = hub.add(REPO, {"a": b"0"})
    content = os.urandom(3_000_000)
    url = start_upload(http, content)["actions"]["upload"]["href"]

    def half():
        yield content[:2_000_000]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        httpx2.put(url, content=half(), headers={"Content-Length": str(len(content))})
    assert repo.lfs_objects == {}
    assert commit_lfs(http, content).status_code == 400
    # The same URL takes a second attempt.
    assert httpx2.put(url, content=content).status_code == 200
    assert commit_lfs(http, content).status_code == 200


def test_parts_come_in_any_order_and_more_than_once(hub: LocalHub, http: httpx2.Client):
    hub.add(REPO, {"a": b"0"})
    hub.part_bytes = 4
    content = b"0123456789"
    upload = start_upload(http, content)["actions"]["upload"]
    assert upload["header"]["chunk_size"] == "4"
    etags = {}
    for number in (3, 1, 2, 1):
        part = content[4 * number - 4 : 4 * number]
        etags[number] = httpx2.put(upload["header"][str(number)], content=part).headers["etag"]
    oid = hashlib.sha256(content).hexdigest()
    parts = [{"partNumber": number, "etag": etag} for number, etag in sorted(etags.items())]
    short = {"oid": oid, "parts": parts[:2]}
    assert httpx2.post(upload["href"], json=short).status_code == 400
    whole = {"oid": oid, "parts": parts}
    assert httpx2.post(upload["href"], json=whole).status_code == 200
    assert httpx2.post(upload["href"], json=whole).status_code == 200  # its answer was lost
    assert commit_lfs(http, content).status_code == 200


def test_a_part_of_the_wrong_size_is_refused(hub: LocalHub, http: httpx2.Client):
    hub.add(REPO, {"a": b"0"})
    hub.part_bytes = 4
    upload = start_upload(http, b"0123456789")["actions"]["upload"]
    assert httpx2.put(upload["header"]["3"], content=b"890").status_code == 400
    assert httpx2.put(upload["href"] + "/4", content=b"").status_code == 400


def test_an_upload_url_that_nobody_gave_out_is_refused(hub: LocalHub):
    assert httpx2.put(f"{hub.cdn_url}/lfs/0123", content=b"x").status_code == 403


def test_downloads_by_the_lfs_protocol_are_refused(hub, http: httpx2.Client):
    hub.add(REPO, {"a": b"0"})
    body = {"operation": "download", "objects": []}
    answer = http.post(f"/{REPO}.git/info/lfs/objects/batch", json=body)
    assert "by /resolve/" in answer.json()["error"]


@pytest.mark.parametrize(
    ("private", "words"),
    [(True, "Private repository storage limit reached"), (False, "Your storage patterns")],
)
@pytest.mark.parametrize("path", ["w.safetensors", "w.txt"])
def test_a_full_account_takes_no_more(hub: LocalHub, alice: HfApi, private, words, path):
    hub.quota_bytes = 1000
    repo = hub.add(REPO, {"a.safetensors": bytes(600)}, private=private)
    alice.create_commit(REPO, [add(path, b"a" * 400)], commit_message="Just fits")
    with pytest.raises((HfHubHTTPError, RuntimeError)) as caught:
        alice.create_commit(REPO, [add(path, b"b" * 401)], commit_message="Too much")
    assert words in str(caught.value)
    assert len(repo.commits) == 2
    alice.delete_file(path, REPO)  # which takes nothing
