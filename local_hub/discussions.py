"""Discussions and pull requests of a repo on the local Hub."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from local_hub.access import may_write, require_write, require_write_token
from local_hub.answers import Answer, json_answer, refusal
from local_hub.calls import API, Call, Here, Readable, Writable
from local_hub.records import page_path
from local_hub.repos import Blob, Commit, Repo
from local_hub.threads import Discussion

GET = ["GET", "HEAD"]
PAGE = 10
ALL = API + "/discussions"
ONE = ALL + "/{num:int}"

router = APIRouter()


class _New(BaseModel):
    title: str
    description: str = ""
    pullRequest: bool = False  # noqa: N815


class _Comment(BaseModel):
    comment: str


class _Title(BaseModel):
    title: str


class _Status(BaseModel):
    status: Literal["open", "closed"]
    comment: str | None = None


class _Merge(BaseModel):
    comment: str | None = None


def open_pull_request(
    repo: Repo, title: str, description: str, *, user: str, date: str, base: str
) -> Discussion:
    """A pull request whose branch starts where `base` is now."""
    discussion = _open(repo, title, description, user, date)
    discussion.is_pull_request = True
    discussion.base, discussion.fork = base, repo.branches[base]
    repo.branches[discussion.branch] = repo.branches[base]
    return discussion


def note_commit(repo: Repo, branch: str, commit: Commit) -> None:
    """Tell the discussion of a pull request that its branch has a new commit."""
    for discussion in repo.discussions:
        if discussion.branch == branch:
            discussion.add_event(
                "commit", commit.author, commit.date, subject=commit.title, oid=commit.sha
            )


def _open(repo: Repo, title: str, description: str, user: str, date: str) -> Discussion:
    discussion = Discussion(len(repo.discussions) + 1, title, user, date)
    repo.discussions.append(discussion)
    discussion.add_comment(description, user, date)
    return discussion


async def _found(repo: Readable, num: int) -> Discussion:
    if not 1 <= num <= len(repo.discussions):
        raise refusal(404, f"There is no discussion {num} in this repo.")
    return repo.discussions[num - 1]


Found = Annotated[Discussion, Depends(_found)]


def _record(repo: Repo, discussion: Discussion) -> dict[str, Any]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "author": {"name": discussion.author},
        "createdAt": discussion.created_at,
        "isPullRequest": discussion.is_pull_request,
        "repo": {"name": repo.id, "type": repo.kind},
    }


@router.api_route(ALL, methods=GET)
async def get_discussions(
    repo: Readable,
    type: str | None = None,  # noqa: A002
    status: str | None = None,
    author: str | None = None,
    p: int = 0,
) -> Answer:
    found = [
        discussion
        for discussion in reversed(repo.discussions)
        if type in {None, "all", "pull_request" if discussion.is_pull_request else "discussion"}
        and status in {None, "all", "open" if _is_open(discussion) else "closed"}
        and author in {None, discussion.author}
    ]
    start = p * PAGE
    return json_answer(
        {
            "count": len(found),
            "start": start,
            "discussions": [_record(repo, one) for one in found[start : start + PAGE]],
        }
    )


def _is_open(discussion: Discussion) -> bool:
    return discussion.status in {"open", "draft"}


@router.api_route(ONE, methods=GET)
async def get_discussion(repo: Readable, discussion: Found) -> Answer:
    record = _record(repo, discussion) | {"events": discussion.events}
    if discussion.is_pull_request:
        changes = {"base": f"refs/heads/{discussion.base}"}
        if discussion.merge_commit is not None:
            changes["mergeCommitId"] = discussion.merge_commit
        record |= {"changes": changes, "filesWithConflicts": _conflicts(repo, discussion)}
    return json_answer(record)


@router.post(ALL)
async def post_discussion(call: Here, repo: Readable, body: _New) -> Answer:
    user = require_write_token(call.hub, call.request)
    now = call.hub.now()
    if body.pullRequest:
        discussion = open_pull_request(
            repo, body.title, body.description, user=user, date=now, base="main"
        )
        discussion.status = "draft"
    else:
        discussion = _open(repo, body.title, body.description, user, now)
    call.changed.add(repo.key)
    url = f"{call.hub.url}{page_path(repo)}/discussions/{discussion.num}"
    return json_answer({"num": discussion.num, "url": url})


@router.post(ONE + "/comment")
async def post_comment(call: Here, repo: Readable, discussion: Found, body: _Comment) -> Answer:
    user = require_write_token(call.hub, call.request)
    call.changed.add(repo.key)
    return json_answer({"newMessage": discussion.add_comment(body.comment, user, call.hub.now())})


@router.post(ONE + "/title")
async def post_title(call: Here, repo: Readable, discussion: Found, body: _Title) -> Answer:
    user = _require_own(call, repo, discussion)
    before, discussion.title = discussion.title, body.title
    event = discussion.add_event(
        "title-change", user, call.hub.now(), **{"from": before, "to": body.title}
    )
    return json_answer({"newTitle": event})


@router.post(ONE + "/status")
async def post_status(call: Here, repo: Readable, discussion: Found, body: _Status) -> Answer:
    user = _require_own(call, repo, discussion)
    if discussion.status == "merged":
        raise refusal(400, "This pull request is merged already.")
    if body.comment:
        discussion.add_comment(body.comment, user, call.hub.now())
    return json_answer({"newStatus": discussion.set_status(body.status, user, call.hub.now())})


def _require_own(call: Call, repo: Repo, discussion: Discussion) -> str:
    """Its author may change a discussion, and who may write to the repo."""
    user = require_write_token(call.hub, call.request)
    if user != discussion.author and not may_write(call.hub, repo.namespace, user):
        require_write(call.hub, call.request, repo)
    call.changed.add(repo.key)
    return user


@router.post(ONE + "/merge")
async def post_merge(
    call: Here, repo: Writable, discussion: Found, body: _Merge | None = None
) -> Answer:
    user = call.user or ""
    if not discussion.is_pull_request or discussion.status != "open":
        raise refusal(400, f"A discussion that is {discussion.status} cannot be merged.")
    if conflicts := _conflicts(repo, discussion):
        raise refusal(409, f"This pull request has conflicts: {', '.join(conflicts)}.")
    if body is not None and body.comment:
        discussion.add_comment(body.comment, user, call.hub.now())
    commit = repo.commit(
        _proposed(repo, discussion),
        branch=discussion.base,
        title=f"{discussion.title} (#{discussion.num})",
        author=user,
        date=call.hub.now(),
    )
    discussion.merge_commit = commit.sha
    discussion.set_status("merged", user, call.hub.now())
    return json_answer({})


def _proposed(repo: Repo, discussion: Discussion) -> dict[str, Blob | None]:
    """Changes of a pull request, against the commit that it started from."""
    return _difference(repo, discussion.fork, repo.branches[discussion.branch])


def _conflicts(repo: Repo, discussion: Discussion) -> list[str]:
    """The files that have changed differently on both sides since."""
    if discussion.branch not in repo.branches or discussion.status == "merged":
        return []
    proposed = _proposed(repo, discussion)
    since = _difference(repo, discussion.fork, repo.branches[discussion.base])
    return sorted(name for name in proposed.keys() & since.keys() if proposed[name] != since[name])


def _difference(repo: Repo, before: str | None, after: str) -> dict[str, Blob | None]:
    old = repo.commits[before].files if before else {}
    new = repo.commits[after].files
    return {
        name: new.get(name) for name in old.keys() | new.keys() if old.get(name) != new.get(name)
    }
