"""Large files on their way into the local Hub, by the LFS protocol.

There is no xet here: clients need HF_HUB_DISABLE_XET=1 in their environment.

An upload is a URL that takes the bytes of one object, whole or in parts. Bytes go to a file as they
arrive; only when their sha256 is the one that was announced does the repo have the object.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest

from local_hub.access import require_write, require_write_token
from local_hub.answers import Answer, error_answer, json_answer, refusal
from local_hub.calls import PREFIXED, Call, Here, Readable
from local_hub.repos import CHUNK_BYTES, Blob, Repo

if TYPE_CHECKING:
    from local_hub.hub import LocalHub

OBJECTS = PREFIXED + ".git/info/lfs/objects"
LFS_JSON = {"Content-Type": "application/vnd.git-lfs+json"}

router = APIRouter()


@dataclass
class Upload:
    """One object on its way; `etags` has the parts that arrived."""

    repo: Repo
    oid: str
    size: int
    part_bytes: int
    path: Path | None = None
    etags: dict[int, str] = field(default_factory=dict)

    @property
    def num_parts(self) -> int:
        return -(-self.size // self.part_bytes)

    def part_size(self, number: int) -> int:
        return min(self.part_bytes, self.size - (number - 1) * self.part_bytes)


class _Object(BaseModel):
    oid: str
    size: int


class _Batch(BaseModel):
    operation: str
    objects: list[_Object]
    transfers: list[str] = ["basic"]


class _Part(BaseModel):
    partNumber: int  # noqa: N815
    etag: str


class _Completion(BaseModel):
    oid: str
    parts: list[_Part]


def require_quota(hub: LocalHub, repo: Repo, num_new_bytes: int) -> None:
    if hub.quota_bytes is None or num_new_bytes == 0:
        return
    own = (other for other in hub.repos.values() if other.namespace == repo.namespace)
    if sum(other.num_stored_bytes for other in own) + num_new_bytes <= hub.quota_bytes:
        return
    if repo.private:
        message = (
            "Private repository storage limit reached, please upgrade your plan to increase your "
            "private storage limit."
        )
    else:
        message = (
            "Your storage patterns tripped our internal systems! Please contact us at "
            "website@huggingface.co so we can verify your account and unlock more storage for "
            "your use-case."
        )
    raise refusal(403, message)


@router.post(OBJECTS + "/batch")
async def post_batch(call: Here, repo: Readable, body: _Batch) -> Answer:
    user = require_write_token(call.hub, call.request)
    # The author of a pull request uploads files as well.
    if not any(d.is_pull_request and d.author == user for d in repo.discussions):
        require_write(call.hub, call.request, repo)
    if body.operation != "upload":
        raise refusal(400, "The local Hub does LFS uploads only: download files by /resolve/.")
    missing = [o for o in body.objects if o.oid not in repo.lfs_objects]
    require_quota(call.hub, repo, sum(wanted.size for wanted in missing))
    in_parts = "multipart" in body.transfers and any(
        wanted.size > call.hub.part_bytes for wanted in missing
    )
    answer = {
        "transfer": "multipart" if in_parts else "basic",
        "objects": [
            wanted.model_dump()
            | ({"actions": _actions(call, repo, wanted, body)} if wanted in missing else {})
            for wanted in body.objects
        ],
    }
    return json_answer(answer, headers=LFS_JSON)


def _actions(call: Call, repo: Repo, wanted: _Object, body: _Batch) -> dict[str, Any]:
    hub = call.hub
    name = secrets.token_hex(16)
    in_parts = "multipart" in body.transfers and wanted.size > hub.part_bytes
    upload = Upload(repo, wanted.oid, wanted.size, hub.part_bytes if in_parts else wanted.size)
    hub.uploads[name] = upload
    verify = f"{hub.url}{call.request.path.removesuffix('batch')}verify"
    url = f"{hub.cdn_url}/lfs/{name}"
    if not in_parts:
        return {"upload": {"href": url}, "verify": {"href": verify}}
    header = {"chunk_size": str(hub.part_bytes)}
    header |= {str(number): f"{url}/{number}" for number in range(1, upload.num_parts + 1)}
    return {"upload": {"href": url, "header": header}, "verify": {"href": verify}}


@router.put("/lfs/{name:part}")
async def put_object(call: Here, name: str, http: HTTPRequest) -> Answer:
    upload = _upload(call, name)
    path = call.hub.store.incoming()
    try:
        sha256, size = await _write(http.stream(), path, 0)
    except ClientDisconnect:
        path.unlink()
        return Answer(499)
    return _finish(call, name, upload, path, sha256=sha256, size=size)


@router.put("/lfs/{name:part}/{number:int}")
async def put_part(call: Here, name: str, number: int, http: HTTPRequest) -> Answer:
    upload = _upload(call, name)
    if upload.path is None:
        upload.path = call.hub.store.incoming()
    try:
        sha256, size = await _write(http.stream(), upload.path, (number - 1) * upload.part_bytes)
    except ClientDisconnect:
        return Answer(499)
    if not 1 <= number <= upload.num_parts or size != upload.part_size(number):
        return error_answer(400, None, f"Part {number} of an upload has the wrong size.")
    upload.etags[number] = f'"{sha256[:32]}"'
    return Answer(200, b"", {"ETag": upload.etags[number]})


@router.post("/lfs/{name:part}")
async def post_completion(call: Here, name: str, body: _Completion) -> Answer:
    upload = _upload(call, name)
    if upload.oid in upload.repo.lfs_objects:
        return json_answer({})  # asked again, since the first answer was lost
    told = {part.partNumber: part.etag for part in body.parts}
    if told != upload.etags or len(told) != upload.num_parts or upload.path is None:
        return error_answer(400, None, "One or more of the specified parts could not be found.")
    sha256 = hashlib.sha256()
    with upload.path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha256.update(chunk)
    size = upload.path.stat().st_size
    return _finish(call, name, upload, upload.path, sha256=sha256.hexdigest(), size=size)


@router.post(OBJECTS + "/verify")
async def post_verify(repo: Readable, body: _Object) -> Answer:
    blob = repo.lfs_objects.get(body.oid)
    if blob is None or blob.size != body.size:
        return error_answer(404, None, f"Object {body.oid} was not uploaded.")
    return json_answer({}, headers=LFS_JSON)


def _upload(call: Call, name: str) -> Upload:
    upload = call.hub.uploads.get(name)
    if upload is None:
        raise refusal(403, "Request has expired")
    return upload


async def _write(body: AsyncIterator[bytes], path: Path, start: int) -> tuple[str, int]:
    """Write a body as it comes; sha256 and size of it."""
    sha256, size = hashlib.sha256(), 0
    with path.open("r+b") as stream:
        stream.seek(start)
        async for chunk in body:
            stream.write(chunk)
            sha256.update(chunk)
            size += len(chunk)
    return sha256.hexdigest(), size


def _finish(call: Call, name: str, upload: Upload, path: Path, *, sha256: str, size: int) -> Answer:
    """Let the repo have an object, if it is what was announced."""
    if (sha256, size) != (upload.oid, upload.size):
        path.unlink()
        upload.path, upload.etags = None, {}
        message = "The Content-SHA256 you specified did not match what we received"
        return error_answer(400, None, message)
    kept = call.hub.store.keep(path, sha256)
    upload.repo.lfs_objects[sha256] = Blob.in_lfs(kept, size, sha256)
    call.changed.add(upload.repo.key)
    return Answer(200, b"", {"ETag": f'"{sha256}"'})
