"""Repos come, go, move and change; branches and tags too."""

from __future__ import annotations

import re
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from local_hub.access import require_namespace, require_write
from local_hub.answers import Answer, json_answer, refusal
from local_hub.calls import API, At, Here, Writable
from local_hub.records import page_path
from local_hub.repos import LFS_SUFFIXES, Repo

NAME = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9_][\w.-]{0,94}[A-Za-z0-9_]|[A-Za-z0-9_]", re.ASCII)
GITATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES
).encode()

router = APIRouter()
Kind = Literal["model", "dataset", "space"]


class _New(BaseModel):
    model_config = ConfigDict(extra="ignore")
    name: str
    organization: str | None = None
    type: Kind = "model"
    visibility: Literal["public", "private", "protected"] = "public"
    sdk: str | None = None


class _Old(BaseModel):
    name: str
    organization: str | None = None
    type: Kind = "model"


class _Move(BaseModel):
    fromRepo: str  # noqa: N815
    toRepo: str  # noqa: N815
    type: Kind = "model"


class _Settings(BaseModel):
    gated: Literal["auto", "manual", False] | None = None
    visibility: Literal["public", "private", "protected"] | None = None


class _Branch(BaseModel):
    startingPoint: str | None = None  # noqa: N815


class _Tag(BaseModel):
    tag: str
    message: str | None = None


class _Squash(BaseModel):
    message: str


@router.post("/api/repos/create")
async def post_repo(call: Here, body: _New) -> Answer:
    namespace = body.organization or call.user or ""
    user = require_namespace(call.hub, call.request, body.type, namespace)
    if not NAME.fullmatch(body.name) or body.name.endswith(".git"):
        raise refusal(400, f"Invalid repo name: {namespace}/{body.name}")
    if body.type == "space" and body.sdk is None:
        raise refusal(400, "A Space needs an sdk: gradio, docker or static.")
    repo = Repo(f"{namespace}/{body.name}", body.type, private=body.visibility == "private")
    url = call.hub.url + page_path(repo)
    if repo.key in call.hub.repos:
        message = f"You already created this {body.type} repo: {repo.id}"
        return json_answer({"error": message, "url": url}, 409, {"X-Error-Message": message})
    repo.hub_id = call.hub.new_hub_id(repo.key)
    repo.sdk = body.sdk
    repo.created_at = repo.last_modified = now = call.hub.now()
    repo.commit({".gitattributes": GITATTRIBUTES}, title="initial commit", author=user, date=now)
    call.hub.repos[repo.key] = repo
    call.hub.renamed.pop(repo.id, None)
    call.changed.add(repo.key)
    return json_answer({"url": url, "name": repo.id, "id": repo.id})


@router.delete("/api/repos/delete")
async def delete_repo(call: Here, body: _Old) -> Answer:
    repo = call.repo(body.type, f"{body.organization or call.user}/{body.name}")
    require_write(call.hub, call.request, repo)
    del call.hub.repos[repo.key]
    call.changed.add(repo.key)
    return json_answer({})


@router.post("/api/repos/move")
async def post_move(call: Here, body: _Move) -> Answer:
    repo = call.repo(body.type, body.fromRepo)
    require_write(call.hub, call.request, repo)
    namespace, _, name = body.toRepo.partition("/")
    require_namespace(call.hub, call.request, body.type, namespace)
    if not NAME.fullmatch(name):
        raise refusal(400, f"Invalid repo name: {body.toRepo}")
    if (body.type, body.toRepo) in call.hub.repos:
        raise refusal(409, f"There is a {body.type} {body.toRepo} already.")
    call.changed |= {repo.key, (body.type, body.toRepo)}
    del call.hub.repos[repo.key]
    call.hub.renamed[repo.id] = body.toRepo
    call.hub.renamed.pop(body.toRepo, None)
    repo.id = body.toRepo
    call.hub.repos[repo.key] = repo
    return json_answer({})


@router.put(API + "/settings")
async def put_settings(repo: Writable, body: _Settings) -> Answer:
    if body.gated is not None:
        repo.gated = body.gated
    if body.visibility is not None:
        repo.private = body.visibility == "private"
    return json_answer({"gated": repo.gated, "private": repo.private})


@router.post(API + "/branch/{branch:part}")
async def post_branch(
    call: Here, repo: Writable, branch: str, body: _Branch | None = None
) -> Answer:
    start = call.commit(repo, (body and body.startingPoint) or "main")
    if branch in repo.branches:
        raise refusal(409, f"Reference already exists: refs/heads/{branch}")
    repo.branches[branch] = start.sha
    return json_answer({})


@router.delete(API + "/branch/{branch:part}")
async def delete_branch(repo: Writable, branch: str) -> Answer:
    if branch == "main":
        raise refusal(400, "The branch main cannot be deleted.")
    if repo.branches.pop(branch, None) is None:
        raise refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    return json_answer({})


@router.post(API + "/tag/{revision:part}")
async def post_tag(repo: Writable, commit: At, body: _Tag) -> Answer:
    if body.tag in repo.tags:
        raise refusal(409, f"Tag already exists: refs/tags/{body.tag}")
    repo.tags[body.tag] = commit.sha
    return json_answer({})


@router.delete(API + "/tag/{tag:part}")
async def delete_tag(repo: Writable, tag: str) -> Answer:
    if repo.tags.pop(tag, None) is None:
        raise refusal(404, f"Invalid rev id: {tag}", "RevisionNotFound")
    return json_answer({})


@router.post(API + "/super-squash/{branch:part}")
async def post_squash(call: Here, repo: Writable, branch: str, body: _Squash) -> Answer:
    if branch not in repo.branches:
        raise refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    repo.squash(branch, body.message, call.hub.now())
    return json_answer({})
