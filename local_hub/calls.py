"""Arguments of routes: the call itself, and the repo or commit that its path names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote

from fastapi import Depends
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import HTTPConnection

from local_hub.access import may_read, require_write
from local_hub.answers import Answer, RefusalError, Request, refusal
from local_hub.repos import Commit, Repo

if TYPE_CHECKING:
    from local_hub.hub import LocalHub
    from local_hub.store import Key


class _Part(Convertor[str]):
    regex = "[^/]+"

    def convert(self, value: str) -> str:
        return unquote(value)

    def to_string(self, value: str) -> str:
        raise NotImplementedError


class _RepoId(_Part):
    regex = "[^/]+/[^/]+"


class _Rest(_Part):
    regex = ".+"


class _Kind(_Part):
    regex = "(?:model|dataset|space)s"

    def convert(self, value: str) -> str:
        return value.removesuffix("s")


class _Prefix(_Kind):
    """The prefix of a repo's id in paths where models have none."""

    regex = "(?:(?:dataset|space)s/)?"

    def convert(self, value: str) -> str:
        return value.removesuffix("s/") or "model"


register_url_convertor("part", _Part())
register_url_convertor("repo_id", _RepoId())
register_url_convertor("rest", _Rest())
register_url_convertor("kind", _Kind())
register_url_convertor("prefix", _Prefix())

API = "/api/{kind:kind}/{repo_id:repo_id}"
PREFIXED = "/{kind:prefix}{repo_id:repo_id}"


@dataclass
class Call:
    """One request on its way through a route, which notes what it changed."""

    hub: LocalHub
    request: Request
    changed: set[Key] = field(default_factory=set)

    @property
    def user(self) -> str | None:
        return self.request.user

    def repo(self, kind: str, repo_id: str) -> Repo:
        """The repo, if it exists and the user may know of it."""
        repo = self.hub.repos.get((kind, repo_id))
        if repo is None and (new := self.hub.renamed.get(repo_id)) is not None:
            location = self.request.path.replace(repo_id, new, 1)
            raise RefusalError(Answer(307, headers={"Location": location}))
        if repo is None or (repo.private and not may_read(self.hub, repo, self.user)):
            # A request without a token does not learn whether the repo exists.
            status = 401 if self.user is None else 404
            raise refusal(status, "Repository not found", "RepoNotFound")
        if repo.disabled:
            raise refusal(403, "Access to this resource is disabled.")
        return repo

    def commit(self, repo: Repo, revision: str = "main") -> Commit:
        if (commit := repo.at(revision)) is None:
            raise refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def require_files(self, repo: Repo) -> None:
        """A gated repo shows its page to all and its files only to some."""
        if repo.gated and not may_read(self.hub, repo, self.user):
            status = 401 if self.user is None else 403
            message = f"Access to {repo.kind} {repo.id} is restricted"
            raise refusal(status, f"{message} and you are not in the authorized list.", "GatedRepo")


async def _call(http: HTTPConnection) -> Call:
    return http.scope["call"]


Here = Annotated[Call, Depends(_call)]


async def _readable(call: Here, kind: str, repo_id: str) -> Repo:
    return call.repo(kind, repo_id)


async def _writable(call: Here, kind: str, repo_id: str) -> Repo:
    repo = call.repo(kind, repo_id)
    require_write(call.hub, call.request, repo)
    call.changed.add(repo.key)
    return repo


Readable = Annotated[Repo, Depends(_readable)]
Writable = Annotated[Repo, Depends(_writable)]


async def _commit_at(call: Here, repo: Readable, revision: str) -> Commit:
    return call.commit(repo, revision)


# The commit that `{revision}` in the path names.
At = Annotated[Commit, Depends(_commit_at)]
