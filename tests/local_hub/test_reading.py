from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFolder

from local_hub import LocalHub, Repo
from local_hub.reads import HISTORY_PAGE, TREE_PAGE

pytestmark = pytest.mark.hub

REPO = "alice/tiny"
CARD = b"""---
library_name: mlx
pipeline_tag: text-generation
tags: [dynquant, 4-bit]
base_model: org/Base
base_model_relation: quantized
license: apache-2.0
---
# Tiny
"""


def safetensors(*shapes: list[int]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    for i, shape in enumerate(shapes):
        header[f"w{i}"] = {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]}
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded


def test_a_record_says_what_the_card_the_config_and_the_weights_say(hub, nobody: HfApi):
    config = {"model_type": "qwen3", "architectures": ["Q"], "quantization": {"bits": 4}}
    files = {
        "README.md": CARD,
        "config.json": json.dumps(config).encode(),
        "model.safetensors": safetensors([2, 3], [4]),
    }
    hub.add(REPO, files, downloads=5, likes=2, created_at="2026-02-03T04:05:06.000Z")
    found = nobody.model_info(REPO)
    assert (found.id, found.author, found.sha) == (
        REPO,
        "alice",
        hub.repos["model", REPO].branches["main"],
    )
    assert found.tags == [
        "mlx",
        "safetensors",
        "qwen3",
        "text-generation",
        "dynquant",
        "4-bit",
        "base_model:org/Base",
        "base_model:quantized:org/Base",
        "license:apache-2.0",
        "region:us",
    ]
    assert (found.library_name, found.pipeline_tag) == ("mlx", "text-generation")
    assert found.card_data is not None
    assert found.card_data["base_model"] == "org/Base"
    assert found.config == {"model_type": "qwen3", "architectures": ["Q"]}
    assert found.safetensors is not None
    assert (found.safetensors.parameters, found.safetensors.total) == ({"BF16": 10}, 10)
    assert (found.downloads, found.likes, found.private, found.gated) == (5, 2, False, False)
    assert found.created_at == datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert found.used_storage == len(files["model.safetensors"])


def test_a_record_can_be_asked_for_in_part(hub, nobody: HfApi):
    hub.add(REPO, {"README.md": CARD})
    found = nobody.model_info(REPO, expand=["baseModels", "sha"])
    assert vars(found)["base_models"] == {"relation": "quantized", "models": [{"id": "org/Base"}]}
    assert found.tags is None
    with pytest.raises(HfHubHTTPError, match="cannot expand moon"):
        nobody.model_info(REPO, expand=["moon"])  # type: ignore[list-item]


def test_a_card_that_cannot_be_read_leaves_a_record_without_metadata(hub, nobody: HfApi):
    files = {"README.md": b"---\n{[\n---\n", "config.json": b"{", "model.safetensors": b"abc"}
    hub.add(REPO, files)
    found = nobody.model_info(REPO)
    assert found.tags == ["safetensors", "region:us"]
    assert (found.card_data, found.config, found.safetensors) == (None, None, None)


def header(text: str) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode()


def tensor(shape: str, dtype: str = '"BF16"') -> bytes:
    return header(f'{{"w": {{"dtype": {dtype}, "shape": {shape}, "data_offsets": [0, 0]}}}}')


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header("[" * 100_000),
        header('{"w":' * 100_000),
        tensor("[" * 50_000 + "]" * 50_000),
        tensor("[" + ", ".join(["9223372036854775807"] * 20_000) + "]"),
        tensor("[" + "9" * 4_000 + "]"),
        tensor("[[0], 1000000000]"),
        tensor('["a", 2]'),
        tensor("[-1]"),
        tensor("[2.5]"),
        tensor("[1e400]"),
        tensor("[NaN]"),
        tensor("[true]"),
        tensor("{}", "null"),
        tensor("[2]", "null"),
        tensor("[2]", "[]"),
        tensor("[2]", '"' + "B" * 100_000 + '"'),
        header('{"a": 1}'),
        header(
            json.dumps(
                {f"w{i}": {"dtype": "I8", "shape": [2**62], "data_offsets": [0, 0]} for i in (0, 1)}
            )
        ),
        (2**64 - 1).to_bytes(8, "little"),
    ],
    ids=lambda content: content[8:40].decode("ascii", "replace") or "short",
)
def test_weights_whose_header_makes_no_sense_are_not_counted(hub, nobody: HfApi, http, content):
    hub.add(REPO, {"model.safetensors": content, "other.safetensors": safetensors([3])})
    found = nobody.model_info(REPO)
    assert found.safetensors is not None
    assert found.safetensors.parameters == {"BF16": 3}
    assert [each.id for each in nobody.list_models(expand=["safetensors"])] == [REPO]
    assert http.get(f"/{REPO}").status_code == 200


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "- " * 200_000,
        "a: &a [*a]",
        "a0: &a0 [x, x]\n" + "\n".join(f"a{i}: &a{i} [{9 * f'*a{i - 1}, '}]" for i in range(1, 40)),
        "x: .inf",
        "x: .nan",
        "x: " + "9" * 4_000,
        "? [1, 2]\n: 3",
    ],
    ids=lambda text: text[:12],
)
def test_a_card_that_stands_for_too_much_is_no_metadata(hub, nobody: HfApi, http, text):
    config = '{"model_type": ' + "[" * 100_000
    hub.add(REPO, {"README.md": f"---\n{text}\n---\n".encode(), "config.json": config.encode()})
    found = nobody.model_info(REPO)
    assert (found.card_data, found.config) == (None, None)
    assert http.get(f"/{REPO}").status_code == 200


def test_a_date_in_a_card_is_a_text(hub, nobody: HfApi):
    hub.add(REPO, {"README.md": b"---\nmade: 2026-01-02\n---\n"})
    found = nobody.model_info(REPO).card_data
    assert found is not None
    assert found["made"] == "2026-01-02"


def test_files_come_with_size_and_hashes(hub, nobody: HfApi):
    hub.add(REPO, {"a.safetensors": b"weights", "b.txt": b"text"})
    weights, text = nobody.model_info(REPO, files_metadata=True).siblings or []
    assert weights.lfs is not None
    assert (weights.size, weights.lfs.sha256) == (7, hashlib.sha256(b"weights").hexdigest())
    assert (text.size, text.lfs) == (4, None)
    assert text.blob_id == hashlib.sha1(b"blob 4\0text").hexdigest()


def test_a_tree_comes_in_pages(hub, nobody: HfApi):
    names = [f"part-{i:03d}.txt" for i in range(2 * TREE_PAGE + 1)]
    hub.add(REPO, dict.fromkeys(names, b"x"))
    assert [item.path for item in nobody.list_repo_tree(REPO)] == names
    assert len(hub.asked("GET .*/tree/")) == 3


def test_a_tree_has_folders(hub, nobody: HfApi):
    hub.add(REPO, {"a b/c/ü.txt": b"1", "a b/d.txt": b"2", "e.txt": b"3"})
    top = list(nobody.list_repo_tree(REPO))
    assert [(item.path, isinstance(item, RepoFolder)) for item in top] == [
        ("a b", True),
        ("e.txt", False),
    ]
    inside = nobody.list_repo_tree(REPO, "a b", recursive=True)
    assert [item.path for item in inside] == ["a b/c", "a b/c/ü.txt", "a b/d.txt"]
    with pytest.raises(EntryNotFoundError):
        list(nobody.list_repo_tree(REPO, "nowhere"))


def test_a_tree_says_which_commit_changed_what_last(hub, nobody: HfApi):
    repo = hub.add(REPO, {"a/1.txt": b"1", "b.txt": b"2"})
    repo.commit({"a/1.txt": b"new"}, title="Second")
    items = {item.path: item.last_commit for item in nobody.list_repo_tree(REPO, expand=True)}
    assert {path: commit and commit.title for path, commit in items.items()} == {
        "a": "Second",
        "b.txt": "Upload",
    }


def test_paths_are_looked_up_in_one_go(hub, nobody: HfApi):
    hub.add(REPO, {"a b/c.txt": b"1", "d.safetensors": b"22"})
    found = nobody.get_paths_info(REPO, ["a b", "a b/c.txt", "d.safetensors", "none"], expand=True)
    assert [item.path for item in found] == ["a b", "a b/c.txt", "d.safetensors"]
    assert all(item.last_commit and item.last_commit.title == "Upload" for item in found)


def test_history_comes_newest_first_and_in_pages(hub, nobody: HfApi):
    repo = hub.add(REPO, {"a": b"0"})
    for number in range(HISTORY_PAGE):
        repo.commit({"a": str(number).encode()}, title=f"Number {number}", author="bob")
    commits = nobody.list_repo_commits(REPO, formatted=True)
    assert len(commits) == HISTORY_PAGE + 1
    assert (commits[0].title, commits[0].authors, commits[-1].title) == (
        f"Number {HISTORY_PAGE - 1}",
        ["bob"],
        "Upload",
    )
    assert commits[0].formatted_title == commits[0].title


def test_refs_are_branches_tags_conversions_and_pull_requests(hub, nobody: HfApi):
    repo = hub.add(REPO, {"a": b"0"})
    for branch in ("dev", "refs/pr/1", "refs/convert/parquet"):
        repo.commit({"a": b"1"}, branch=branch)
    repo.tags["v1"] = repo.branches["main"]
    refs = nobody.list_repo_refs(REPO, include_pull_requests=True)
    assert [branch.name for branch in refs.branches] == ["main", "dev"]
    assert [(t.ref, t.target_commit) for t in refs.tags] == [("refs/tags/v1", repo.tags["v1"])]
    assert [convert.name for convert in refs.converts] == ["parquet"]
    assert [pr.ref for pr in refs.pull_requests or ()] == ["refs/pr/1"]
    assert nobody.list_repo_refs(REPO).pull_requests is None


@pytest.mark.parametrize("revision", ["refs/pr/1", "dev/x", "v1"])
def test_a_revision_may_have_slashes(hub, nobody: HfApi, revision, tmp_path):
    repo = hub.add(REPO, {"a": b"0"})
    repo.commit({"a": revision.encode()}, branch="dev/x" if revision == "v1" else revision)
    repo.tags["v1"] = repo.branches.get("dev/x", "")
    path = hf_hub_download(REPO, "a", revision=revision, cache_dir=tmp_path)
    with open(path, "rb") as stream:  # noqa: PTH123
        assert stream.read() == (b"dev/x" if revision == "dev/x" else revision.encode())


def test_what_is_in_lfs_comes_from_another_origin(hub: LocalHub, http: httpx2.Client):
    repo = hub.add(REPO, {"w.safetensors": b"weights"})
    sent = http.head(f"/{REPO}/resolve/main/w.safetensors")
    assert sent.status_code == 302
    assert sent.headers["x-repo-commit"] == repo.branches["main"]
    assert sent.headers["x-linked-etag"] == f'"{hashlib.sha256(b"weights").hexdigest()}"'
    assert sent.headers["x-linked-size"] == "7"
    assert sent.headers["location"].startswith(hub.cdn_url)
    assert httpx2.get(sent.headers["location"]).content == b"weights"


@pytest.mark.parametrize(
    ("wanted", "status", "content"),
    [
        ("bytes=2-4", 206, b"234"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=8-99", 206, b"89"),
        ("bytes=10-", 416, b""),
        ("bytes=-", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
    ],
)
def test_parts_of_a_file(hub, http: httpx2.Client, wanted, status, content):
    hub.add(REPO, {"a.txt": b"0123456789"})
    got = http.get(f"/{REPO}/resolve/main/a.txt", headers={"Range": wanted})
    assert (got.status_code, got.content) == (status, content)
    if status == 206:
        start = b"0123456789".index(content)
        assert got.headers["content-range"] == f"bytes {start}-{start + len(content) - 1}/10"


def test_a_large_file_on_disk_is_sent_as_it_is(hub, http: httpx2.Client, tmp_path):
    path = tmp_path / "large.txt"
    path.write_bytes(bytes(range(256)) * 20_000)
    hub.add(REPO, {"large.txt": path})
    assert http.get(f"/{REPO}/resolve/main/large.txt").content == path.read_bytes()
    part = http.get(f"/{REPO}/resolve/main/large.txt", headers={"Range": "bytes=100-3000000"})
    assert part.content == path.read_bytes()[100:3000001]


def test_what_a_repo_holds_never_runs_in_a_browser(hub, http: httpx2.Client):
    hub.add(REPO, {"x.html": b"<script>", "x.svg": b"<svg/>"})
    page, picture = (http.get(f"/{REPO}/resolve/main/x.{end}") for end in ("html", "svg"))
    assert page.headers["content-type"] == "application/octet-stream"
    assert picture.headers["content-type"] == "image/svg+xml"
    for answer in (page, picture):
        assert "sandbox" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_what_is_missing_is_told_by_kind(hub, nobody: HfApi, alice: HfApi):
    hub.add(REPO, {"a": b"0"})
    with pytest.raises(RepositoryNotFoundError):
        alice.model_info("alice/none")
    with pytest.raises(RepositoryNotFoundError):
        nobody.model_info("none")
    with pytest.raises(RevisionNotFoundError):
        alice.model_info(REPO, revision="v9")
    assert not alice.file_exists(REPO, "none")
    assert alice.file_exists(REPO, "a")
    assert not alice.repo_exists(REPO, repo_type="dataset")


def test_a_private_repo_does_not_exist_for_others(hub, alice: HfApi, bob: HfApi, nobody: HfApi):
    hub.add(REPO, {"a": b"0"}, private=True)
    hub.add("club/x", {"a": b"0"}, private=True, readers={"bob"})
    assert alice.model_info(REPO).private
    assert alice.model_info("club/x").private  # as a member of the organization
    assert bob.model_info("club/x").private  # as a named reader
    for api in (bob, nobody):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(REPO)


@pytest.mark.parametrize(("gated", "told"), [(True, "manual"), ("auto", "auto")])
def test_a_gated_repo_shows_its_record_to_all_and_its_files_to_some(hub, bob, alice, gated, told):
    hub.add(REPO, {"a": b"0"}, gated=gated)
    assert bob.model_info(REPO).gated == told
    with pytest.raises(GatedRepoError):
        bob.auth_check(REPO)
    with pytest.raises(GatedRepoError):
        hf_hub_download(REPO, "a", token=bob.token)
    alice.auth_check(REPO)
    hub.repos["model", REPO].readers.add("bob")
    bob.auth_check(REPO)


def test_a_disabled_repo_says_so(hub, nobody: HfApi):
    hub.add(REPO, {"a": b"0"}, disabled=True)
    with pytest.raises(DisabledRepoError):
        nobody.model_info(REPO)


def test_metadata_follow_the_head(hub, nobody: HfApi):
    repo: Repo = hub.add(REPO, {"README.md": CARD})
    assert nobody.model_info(REPO).library_name == "mlx"
    repo.commit({"README.md": b"---\nlibrary_name: other\n---\n"})
    assert nobody.model_info(REPO).library_name == "other"
    repo.card_data = {"library_name": "given"}
    assert nobody.model_info(REPO).library_name == "given"


def test_a_request_that_makes_no_sense_is_refused_with_its_place(http: httpx2.Client):
    answer = http.post("/api/repos/create", json={"type": "model"})
    assert (answer.status_code, answer.json()) == (400, {"error": "body.name: Field required"})
    assert http.get("/api/models?filtre=mlx").json() == {
        "error": "query.filtre: Extra inputs are not permitted"
    }
    assert http.get("/api/moon").json() == {"error": "Not Found"}
    assert http.put("/style.css").json() == {"error": "Method Not Allowed"}
