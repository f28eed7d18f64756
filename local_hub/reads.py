"""Routes that read: users, and of a repo info, trees, paths, refs, history."""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Query

from local_hub.access import overview, require_write, whoami
from local_hub.answers import Answer, json_answer, refusal
from local_hub.calls import API, At, Call, Here, Readable
from local_hub.records import (
    FIELDS,
    INFO,
    commit_record,
    describe,
    file_record,
    siblings,
)
from local_hub.repos import Commit, Repo

# Small enough that a test turns pages.
TREE_PAGE = 50
HISTORY_PAGE = 50
GET = ["GET", "HEAD"]
# Folders have no hash here; clients show it and do nothing with it.
NO_OID = "0" * 40

router = APIRouter()
Expand = Annotated[list[str], Query(default_factory=list)]


@router.api_route("/api/whoami-v2", methods=GET)
async def get_whoami(call: Here) -> Answer:
    return json_answer(whoami(call.hub, call.request))


@router.api_route("/api/users/{name:part}/overview", methods=GET)
async def get_user_overview(call: Here, name: str) -> Answer:
    return json_answer(overview(call.hub, name))


@router.api_route(API, methods=GET)
async def get_info(call: Here, repo: Readable, expand: Expand, blobs: bool = False) -> Answer:
    return _info(repo, call.commit(repo), expand, with_blobs=blobs and call.hub.tells_sizes)


@router.api_route(API + "/revision/{revision:part}", methods=GET)
async def get_info_at(
    call: Here, repo: Readable, commit: At, expand: Expand, blobs: bool = False
) -> Answer:
    return _info(repo, commit, expand, with_blobs=blobs and call.hub.tells_sizes)


@router.api_route("/api/{kind:kind}/{repo_id:part}", methods=GET)
async def get_info_without_namespace(repo: Readable) -> Answer:
    return json_answer(describe(repo, repo.at("main"), INFO))


def _info(repo: Repo, commit: Commit, expand: list[str], *, with_blobs: bool) -> Answer:
    if unknown := sorted(set(expand) - set(FIELDS)):
        raise refusal(400, f"The local Hub cannot expand {', '.join(unknown)}.")
    record = describe(repo, commit, expand or INFO)
    if with_blobs:
        record["siblings"] = siblings(commit, with_blobs=True)
    return json_answer(record)


@router.api_route(API + "/tree/{revision:part}", methods=GET)
@router.api_route(API + "/tree/{revision:part}/{folder:part}", methods=GET)
async def get_tree(
    *,
    call: Here,
    repo: Readable,
    commit: At,
    folder: str = "",
    recursive: bool = False,
    expand: bool = False,
    cursor: int = 0,
) -> Answer:
    prefix = f"{folder}/" if folder else ""
    items: dict[str, dict[str, Any]] = {}
    for name, blob in sorted(commit.files.items()):
        if not name.startswith(prefix):
            continue
        parents = name.removeprefix(prefix).split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            path = prefix + "/".join(parents[:depth])
            if recursive or depth == 1:
                items[path] = {"type": "directory", "path": path, "oid": NO_OID, "size": 0}
        if recursive or not parents:
            items[name] = file_record(name, blob)
    if folder and not items:
        raise refusal(404, "Entry not found", "EntryNotFound")
    page = list(items.values())[cursor : cursor + TREE_PAGE]
    if expand:
        _add_last_commits(repo, commit, page)
    more = cursor + TREE_PAGE < len(items)
    headers = next_page(call, cursor=str(cursor + TREE_PAGE)) if more else {}
    return json_answer(page, headers=headers)


def _add_last_commits(repo: Repo, head: Commit, items: list[dict[str, Any]]) -> None:
    """Say of each file and folder which commit changed it last."""
    for commit in repo.history(head):
        before = repo.commits[commit.parent].files if commit.parent else {}
        changed = [
            name
            for name in commit.files.keys() | before.keys()
            if commit.files.get(name) != before.get(name)
        ]
        for item in items:
            path = item["path"]
            if "lastCommit" not in item and any(
                name == path or name.startswith(f"{path}/") for name in changed
            ):
                item["lastCommit"] = {
                    "id": commit.sha,
                    "title": commit.title,
                    "date": commit.date,
                }


def next_page(call: Call, **changes: str) -> dict[str, str]:
    """The header that names the URL of the next page: this one's, with `changes`."""
    query = call.request.query | {name: [value] for name, value in changes.items()}
    url = f"{call.hub.url}{call.request.path}?{urlencode(query, doseq=True)}"
    return {"Link": f'<{url}>; rel="next"'}


@router.post(API + "/paths-info/{revision:part}")
async def post_paths_info(call: Here, repo: Readable, commit: At) -> Answer:
    fields = parse_qs(call.request.body.decode())
    items: list[dict[str, Any]] = []
    for path in fields.get("paths", []):
        if path in commit.files:
            items.append(file_record(path, commit.files[path]))
        elif any(name.startswith(f"{path}/") for name in commit.files):
            items.append({"type": "directory", "path": path, "oid": NO_OID})
    if fields.get("expand") == ["true"]:
        _add_last_commits(repo, commit, items)
    return json_answer(items)


@router.api_route(API + "/auth-check", methods=GET)
async def get_auth_check(call: Here, repo: Readable) -> Answer:
    call.require_files(repo)
    return json_answer({})


@router.api_route(API + "/auth-check/write", methods=GET)
async def get_auth_check_write(call: Here, repo: Readable) -> Answer:
    require_write(call.hub, call.request, repo)
    return json_answer({})


@router.api_route(API + "/refs", methods=GET)
async def get_refs(repo: Readable, include_prs: bool = False) -> Answer:
    heads = {
        name if name.startswith("refs/") else f"refs/heads/{name}": sha
        for name, sha in repo.branches.items()
    }
    refs = heads | {f"refs/tags/{name}": sha for name, sha in repo.tags.items()}

    def under(start: str) -> list[dict[str, str]]:
        return [
            {"name": ref.removeprefix(start), "ref": ref, "targetCommit": sha}
            for ref, sha in refs.items()
            if ref.startswith(start)
        ]

    found = {
        "branches": under("refs/heads/"),
        "converts": under("refs/convert/"),
        "tags": under("refs/tags/"),
    }
    return json_answer(found | ({"pullRequests": under("refs/pr/")} if include_prs else {}))


@router.api_route(API + "/commits/{revision:part}", methods=GET)
async def get_commits(call: Here, repo: Readable, commit: At, p: int = 0) -> Answer:
    start = p * HISTORY_PAGE
    found = list(islice(repo.history(commit), start, start + HISTORY_PAGE + 1))
    records = [commit_record(commit) for commit in found[:HISTORY_PAGE]]
    if call.request.query.get("expand[]") == ["formatted"]:
        for record in records:
            record["formatted"] = {"title": record["title"], "message": record["message"]}
    more = len(found) > HISTORY_PAGE
    return json_answer(records, headers=next_page(call, p=str(p + 1)) if more else {})
