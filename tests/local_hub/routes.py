"""What the local Hub answers to which path.

Routes are functions in `ROUTES`; to add one, write it and add a line there. What stands between
`<…>` of its pattern arrives decoded as an argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote

from tests.local_hub.answers import Answer, RefusalError, Request, error_answer, json_answer
from tests.local_hub.repos import Blob, Repo, is_lfs

if TYPE_CHECKING:
    from tests.local_hub.server import LocalHub

DATE = "2026-01-01T00:00:00.000Z"
TREE_PAGE = 50


def require_files(repo: Repo, request: Request) -> None:
    """A gated repo shows its page to all and its files only to some."""
    if repo.gated and not repo.may_read(request.user):
        status = 401 if request.user is None else 403
        message = f"Access to model {repo.id} is restricted and you are not in the authorized list."
        raise RefusalError(error_answer(status, "GatedRepo", message))


def get_info(hub: LocalHub, request: Request, kind: str, repo: str, revision: str = "") -> Answer:
    found = hub.repo(request, kind, repo)
    commit = hub.commit(found, revision)
    siblings: list[dict[str, Any]] = []
    for name, blob in sorted(commit.files.items()):
        sibling: dict[str, Any] = {"rfilename": name}
        if request.query.get("blobs") == ["true"]:
            sibling |= {"size": blob.size, "blobId": blob.git_sha1}
            if is_lfs(name):
                sibling["lfs"] = {"size": blob.size, "sha256": blob.sha256, "pointerSize": 134}
        siblings.append(sibling)
    return json_answer(
        {
            "id": found.id,
            "sha": commit.sha,
            "lastModified": DATE,
            "createdAt": DATE,
            "private": found.private,
            "gated": "manual" if found.gated else False,
            "disabled": False,
            "tags": [],
            "cardData": found.card_data,
            "siblings": siblings,
        }
    )


def get_tree(
    hub: LocalHub, request: Request, *, kind: str, repo: str, revision: str, folder: str = ""
) -> Answer:
    commit = hub.commit(hub.repo(request, kind, repo), revision)
    prefix = f"{folder}/" if folder else ""
    recursive = request.query.get("recursive") == ["true"]
    items: dict[str, dict[str, Any]] = {}
    for name, blob in sorted(commit.files.items()):
        if not name.startswith(prefix):
            continue
        parents = name.removeprefix(prefix).split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            path = prefix + "/".join(parents[:depth])
            if recursive or depth == 1:
                items[path] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
        if recursive or not parents:
            items[name] = tree_item(name, blob)
    if folder and not items:
        return error_answer(404, "EntryNotFound", "Entry not found")
    start = int(request.query.get("cursor", ["0"])[0])
    page = list(items.values())[start : start + TREE_PAGE]
    headers = {}
    if start + TREE_PAGE < len(items):
        query = f"recursive={'true' if recursive else 'false'}&cursor={start + TREE_PAGE}"
        headers["Link"] = f'<{hub.url}{request.path}?{query}>; rel="next"'
    return json_answer(page, headers=headers)


def tree_item(name: str, blob: Blob) -> dict[str, Any]:
    item: dict[str, Any] = {"type": "file", "path": name, "size": blob.size, "oid": blob.git_sha1}
    if is_lfs(name):
        item["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
    return item


def post_paths_info(hub: LocalHub, request: Request, kind: str, repo: str, revision: str) -> Answer:
    commit = hub.commit(hub.repo(request, kind, repo), revision)
    paths = parse_qs(request.body.decode()).get("paths", [])
    return json_answer([tree_item(p, commit.files[p]) for p in paths if p in commit.files])


def get_file(
    hub: LocalHub, request: Request, *, kind: str, repo: str, revision: str, path: str
) -> Answer:
    found = hub.repo(request, kind, repo)
    require_files(found, request)
    commit = hub.commit(found, revision)
    headers = {"X-Repo-Commit": commit.sha}
    if (blob := commit.files.get(path)) is None:
        return error_answer(404, "EntryNotFound", "Entry not found", **headers)
    if not is_lfs(path):
        return blob_answer(hub, request, blob, headers | {"ETag": f'"{blob.git_sha1}"'})
    headers |= {
        "X-Linked-ETag": f'"{blob.sha256}"',
        "X-Linked-Size": str(blob.size),
        "Location": f"{hub.cdn_url}/cdn/{kind}/{repo}/{commit.sha}/{quote(path)}",
    }
    return Answer(302, b"Found. Redirecting", headers)


def get_cdn(
    hub: LocalHub, request: Request, *, kind: str, repo: str, revision: str, path: str
) -> Answer:
    blob = hub.repos[kind, repo].commits[revision].files[path]
    return blob_answer(hub, request, blob, {"ETag": f'"{blob.sha256}"'})


def blob_answer(hub: LocalHub, request: Request, blob: Blob, headers: dict[str, str]) -> Answer:
    headers |= {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if hub.ignore_ranges or wanted is None or wanted.group() == "bytes=-":
        body = b"" if request.method == "HEAD" else blob.read(0, blob.size)
        return Answer(200, body, headers, length=blob.size)
    first, last = wanted.groups()
    start = int(first) if first else max(0, blob.size - int(last))
    end = min(int(last) + 1, blob.size) if first and last else blob.size
    if start >= blob.size or start >= end:
        return Answer(416, b"", headers | {"Content-Range": f"bytes */{blob.size}"})
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
    return Answer(206, blob.read(start, end), headers)


def get_auth_check(hub: LocalHub, request: Request, kind: str, repo: str) -> Answer:
    require_files(hub.repo(request, kind, repo), request)
    return json_answer({})


def get_whoami(hub: LocalHub, request: Request) -> Answer:
    if request.user is None:
        return error_answer(401, None, "Invalid user token.")
    return json_answer({"type": "user", "name": request.user, "orgs": [], "auth": {}})


_API = r"/api/(?P<kind>model|dataset|space)s/(?P<repo>[^/]+/[^/]+)"
_FILES = r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
_GET = ("GET", "HEAD")


def _get_model_file(hub: LocalHub, request: Request, **parts: str) -> Answer:
    return get_file(hub, request, kind="model", **parts)


Route = Callable[..., Answer]
ROUTES: list[tuple[tuple[str, ...], re.Pattern[str], Route]] = [
    (methods, re.compile(pattern), route)
    for methods, pattern, route in (
        (_GET, r"/api/whoami-v2", get_whoami),
        (_GET, _API, get_info),
        (_GET, r"/api/(?P<kind>model|dataset|space)s/(?P<repo>[^/]+)", get_info),
        (_GET, _API + r"/revision/(?P<revision>[^/]+)", get_info),
        (_GET, _API + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>[^/]+))?", get_tree),
        (_GET, _API + r"/auth-check", get_auth_check),
        (("POST",), _API + r"/paths-info/(?P<revision>[^/]+)", post_paths_info),
        (_GET, r"/(?P<kind>dataset|space)s" + _FILES, get_file),
        (_GET, _FILES, _get_model_file),
        (
            _GET,
            r"/cdn/(?P<kind>\w+)/(?P<repo>[^/]+/[^/]+)/(?P<revision>\w{40})/(?P<path>.+)",
            get_cdn,
        ),
    )
]
