"""Files of a repo: `/resolve/`, and the storage that holds what is in LFS."""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from fastapi import APIRouter
from starlette.responses import Response, StreamingResponse

from local_hub.answers import Answer, refusal
from local_hub.calls import PREFIXED, At, Call, Here, Readable
from local_hub.repos import CHUNK_BYTES, Blob

GET = ["GET", "HEAD"]
# Pictures of a card are drawn; nothing that a repo holds may run or be taken for a page.
SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "X-Content-Type-Options": "nosniff",
}

router = APIRouter()


@router.api_route(PREFIXED + "/resolve/{revision:part}/{path:rest}", methods=GET)
async def get_file(call: Here, repo: Readable, commit: At, path: str) -> Response:
    call.require_files(repo)
    headers = {"X-Repo-Commit": commit.sha}
    if (blob := commit.files.get(path)) is None:
        raise refusal(404, "Entry not found", "EntryNotFound", **headers)
    if not blob.lfs:
        headers |= {"ETag": f'"{blob.git_sha1}"', "Content-Type": _content_type(path)}
        return _blob_answer(call, blob, headers)
    headers |= {
        "X-Linked-ETag": f'"{blob.sha256}"',
        "X-Linked-Size": str(blob.size),
        **(_xet_headers(call, blob) if call.hub.announces_xet else {}),
        "Location": f"{call.hub.cdn_url}/cdn/{repo.kind}/{repo.id}/{commit.sha}/{quote(path)}",
    }
    return Answer(302, b"Found. Redirecting", headers)


def _xet_headers(call: Call, blob: Blob) -> dict[str, str]:
    """Headers that send a client with Xet to a Xet server; there is no such server here."""
    return {
        "X-Xet-Hash": blob.sha256,
        "X-Xet-Refresh-Route": f"{call.hub.url}/api/no-xet-here",
    }


@router.api_route("/cdn/{kind:part}/{repo_id:repo_id}/{revision:part}/{path:rest}", methods=GET)
async def get_cdn(call: Here, kind: str, repo_id: str, revision: str, path: str) -> Response:
    repo = call.hub.repos.get((kind, repo_id))
    commit = repo.commits.get(revision) if repo else None
    if commit is None or path not in commit.files:
        raise refusal(403, "Access Denied")
    blob = commit.files[path]
    headers = {"ETag": f'"{blob.sha256}"', "Content-Type": _content_type(path)}
    return _blob_answer(call, blob, headers)


def _content_type(path: str) -> str:
    guessed, _ = mimetypes.guess_type(path)
    if guessed is not None and guessed.startswith("image/"):
        return guessed
    return "application/octet-stream"


def _blob_answer(call: Call, blob: Blob, headers: dict[str, str]) -> Response:
    headers |= {"Accept-Ranges": "bytes"} | SAFE_HEADERS
    start, end, status = 0, blob.size, 200
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", call.request.headers.get("range", ""))
    if wanted is not None and wanted.group() != "bytes=-" and not call.hub.ignore_ranges:
        first, last = wanted.groups()
        status = 206
        start = int(first) if first else max(0, blob.size - int(last))
        end = min(int(last) + 1, blob.size) if first and last else blob.size
        if start >= end:
            return Answer(416, b"", headers | {"Content-Range": f"bytes */{blob.size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size}"
    headers["Content-Length"] = str(end - start)
    if call.request.method == "HEAD":
        return Answer(status, b"", headers)
    if isinstance(blob.source, bytes) or end - start <= CHUNK_BYTES:
        return Answer(status, blob.read(start, end), headers)
    return StreamingResponse(_stream(blob, start, end), status, headers)


async def _stream(blob: Blob, start: int, end: int) -> AsyncIterator[bytes]:
    for chunk in blob.chunks(start, end):
        yield chunk
