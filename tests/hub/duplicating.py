"""The Hub's own copying of a repo, as a route of the local Hub."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from local_hub.access import require_namespace
from local_hub.answers import Answer, json_answer, refusal
from local_hub.calls import API, Here, Readable
from local_hub.records import page_path
from local_hub.repos import Repo

__all__ = ["router"]

router = APIRouter()


class _Target(BaseModel):
    repository: str
    visibility: str | None = None
    private: bool | None = None


@router.post(API + "/duplicate")
async def post_duplicate(call: Here, repo: Readable, body: _Target) -> Answer:
    namespace = body.repository.partition("/")[0]
    require_namespace(call.hub, call.request, repo.kind, namespace)
    if (repo.kind, body.repository) in call.hub.repos:
        raise refusal(409, f"There is a {body.repository} already.")
    asked = {None: body.private, "private": True, "public": False}[body.visibility]
    copy = Repo(body.repository, repo.kind, private=repo.private if asked is None else asked)
    head = repo.at("main")
    assert head is not None
    copy.commit(head.files)
    call.hub.repos[copy.key] = copy
    call.changed.add(copy.key)
    return json_answer({"url": call.hub.url + page_path(copy), "filesCopyPending": False})
