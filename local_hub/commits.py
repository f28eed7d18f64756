"""How files come into a repo of the local Hub: preupload, then one commit."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
from typing import Any

from fastapi import APIRouter
from pydantic import Base64Bytes, BaseModel

from local_hub.access import require_write, require_write_token
from local_hub.answers import Answer, RefusalError, json_answer, refusal
from local_hub.calls import API, At, Call, Here, Readable
from local_hub.discussions import note_commit, open_pull_request
from local_hub.lfs import require_quota
from local_hub.records import page_path
from local_hub.repos import LFS_SUFFIXES, Blob, Commit, Repo, StaleParentError
from local_hub.threads import Discussion

MAX_REGULAR_BYTES = 10 * 10**6
SHORT_SHA_LENGTH = 7

router = APIRouter()


class _Candidate(BaseModel):
    path: str
    sample: Base64Bytes = b""
    size: int


class _Preupload(BaseModel):
    files: list[_Candidate]
    gitIgnore: str | None = None  # noqa: N815


@router.post(API + "/preupload/{revision:part}")
async def post_preupload(
    *,
    call: Here,
    repo: Readable,
    commit: At,
    body: _Preupload,
    revision: str,
    create_pr: bool = False,
) -> Answer:
    _require_commit_rights(call, repo, revision, create_pr=create_pr)
    return json_answer({"files": [_mode(file, commit, body.gitIgnore) for file in body.files]})


def _mode(file: _Candidate, commit: Commit, gitignore: str | None) -> dict[str, Any]:
    is_binary = b"\0" in file.sample
    in_lfs = file.path.endswith(LFS_SUFFIXES) or file.size > MAX_REGULAR_BYTES or is_binary
    there = commit.files.get(file.path)
    mode = "lfs" if in_lfs else "regular"
    return {
        "path": file.path,
        "uploadMode": mode,
        "shouldIgnore": _is_ignored(file.path, gitignore or ""),
        "oid": None if there is None else there.sha256 if there.lfs else there.git_sha1,
    }


def _is_ignored(path: str, gitignore: str) -> bool:
    """Whether a plain pattern of a `.gitignore` matches; negations and `**` are left out."""
    patterns = [line.strip().rstrip("/") for line in gitignore.splitlines()]
    parts = path.split("/")
    return any(
        fnmatch.fnmatch(path, pattern) or any(fnmatch.fnmatch(part, pattern) for part in parts)
        for pattern in patterns
        if pattern and not pattern.startswith(("#", "!"))
    )


@router.post(API + "/commit/{revision:part}")
async def post_commit(call: Here, repo: Readable, revision: str, create_pr: bool = False) -> Answer:
    user = _require_commit_rights(call, repo, revision, create_pr=create_pr)
    if revision not in repo.branches:
        raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    header, operations = _read_lines(call.request.body)
    head = repo.commits[repo.branches[revision]]
    _require_parent(header.get("parentCommit"), head)
    changes = _changes(repo, head, operations)
    require_quota(call.hub, repo, sum(b.size for b in changes.values() if b and not b.lfs))
    call.changed.add(repo.key)
    now = call.hub.now()
    words = {"title": header["summary"], "description": header.get("description") or ""}
    opened = None
    if create_pr:
        opened = open_pull_request(repo, **words, user=user, date=now, base=revision)
    branch = opened.branch if opened else revision
    try:
        commit = repo.commit(
            changes, branch=branch, parent=head.sha, author=user, date=now, **words
        )
    except StaleParentError:
        raise _stale() from None
    note_commit(repo, branch, commit)
    return json_answer(_done(call, repo, commit, opened))


def _done(call: Call, repo: Repo, commit: Commit, opened: Discussion | None) -> dict[str, Any]:
    page = call.hub.url + page_path(repo)
    url = f"{page}/commit/{commit.sha}"
    done = {"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": ""}
    if opened is not None:
        done["pullRequestUrl"] = f"{page}/discussions/{opened.num}"
    return done


def _require_commit_rights(call: Call, repo: Repo, revision: str, *, create_pr: bool) -> str:
    """Readers of a repo may open pull requests and commit to their own."""
    user = require_write_token(call.hub, call.request)
    call.require_files(repo)
    own_branches = {d.branch for d in repo.discussions if d.is_pull_request and d.author == user}
    if not create_pr and revision not in own_branches:
        require_write(call.hub, call.request, repo)
    return user


def _require_parent(parent: str | None, head: Commit) -> None:
    if parent is None:
        return
    if len(parent) < SHORT_SHA_LENGTH or not head.sha.startswith(parent):
        raise _stale()


def _stale() -> RefusalError:
    return refusal(412, "A commit has happened since. Please refresh and try again.")


def _read_lines(body: bytes) -> tuple[dict[str, Any], list[tuple[str, dict[str, Any]]]]:
    """The header of a commit and its operations, as (key, value)."""
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        operations = [(line["key"], dict(line["value"])) for line in lines]
    except (ValueError, KeyError, TypeError):
        raise refusal(400, "Each line of a commit must be JSON with a key and a value.") from None
    if not operations or operations[0][0] != "header" or not operations[0][1].get("summary"):
        raise refusal(400, "The first line of a commit must be a header with a summary.")
    return operations[0][1], operations[1:]


def _changes(
    repo: Repo, head: Commit, operations: list[tuple[str, dict[str, Any]]]
) -> dict[str, Blob | None]:
    changes: dict[str, Blob | None] = {}
    for key, value in operations:
        path = value.get("path", "")
        if key == "file":
            changes[_checked(path)] = _regular(path, value)
        elif key == "lfsFile":
            changes[_checked(path)] = _uploaded(repo, path, value)
        elif key == "deletedFile":
            if path not in head.files:
                raise _no_such_file(path)
            changes[path] = None
        elif key == "deletedFolder":
            folder = path.rstrip("/") + "/"
            inside: dict[str, Blob | None] = {n: None for n in head.files if n.startswith(folder)}
            if not inside:
                raise _no_such_file(path)
            changes |= inside
        else:
            raise refusal(400, f"The local Hub does not know the operation {key!r}.")
    return changes


def _checked(path: str) -> str:
    parts = path.split("/")
    if any(part in {"", ".", "..", ".git"} for part in parts) or "\0" in path:
        raise refusal(400, f"{path!r} cannot be the path of a file in a repo.")
    return path


def _regular(path: str, value: dict[str, Any]) -> Blob:
    content = value.get("content", "")
    if value.get("encoding") != "base64":
        return _sized(path, content.encode())
    try:
        return _sized(path, base64.b64decode(content, validate=True))
    except binascii.Error:
        raise refusal(400, f"The content of {path!r} is not base64.") from None


def _sized(path: str, content: bytes) -> Blob:
    if len(content) > MAX_REGULAR_BYTES:
        raise refusal(400, f"{path!r} is larger than 10 MB: upload it to LFS.")
    return Blob.of(content)


def _uploaded(repo: Repo, path: str, value: dict[str, Any]) -> Blob:
    blob = repo.lfs_objects.get(value.get("oid", ""))
    if blob is None or value.get("size", blob.size) != blob.size:
        message = (
            "Your push was rejected because an LFS pointer pointed to a file that does not exist"
        )
        raise refusal(400, f"{message}. Offending file: {path}")
    return blob


def _no_such_file(path: str) -> RefusalError:
    message = f"A file with this name doesn't exist: {path}"
    return refusal(404, message, "EntryNotFound")
