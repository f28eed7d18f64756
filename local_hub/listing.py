"""Lists of repos: filters, orders, pages. They stay quick with tens of thousands of repos.

A list is put in order once and kept until any repo changes; a page is a slice of it. The cursor is
the place of a page's last repo in that order, so what is added meanwhile moves nothing.
"""

from __future__ import annotations

import base64
import json
from bisect import bisect_left
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from local_hub.access import may_read
from local_hub.answers import Answer, json_answer, refusal
from local_hub.calls import Here
from local_hub.cards import metadata
from local_hub.reads import GET, next_page
from local_hub.records import BRIEF, FIELDS, FULL, describe
from local_hub.repos import Repo

if TYPE_CHECKING:
    from local_hub.hub import LocalHub

PAGE = 1000
MAX_LISTS = 64
ORDERS = {
    "createdAt": "created_at",
    "downloads": "downloads",
    "lastModified": "last_modified",
    "likes": "likes",
    "trendingScore": "trending_score",
}
# Parameters that change neither the listed repos nor their order.
_NOT_IN_KEY = ("limit", "cursor", "full", "cardData", "config", "expand")

router = APIRouter()
Place = tuple[Any, str]


class _Wanted(BaseModel):
    """Parameters of a list; an unknown parameter is refused rather than ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    filter: tuple[str, ...] = ()
    author: str | None = None
    search: str | None = None
    gated: bool | None = None
    pipeline_tag: str | None = None
    sort: str = "trendingScore"
    limit: int = PAGE
    cursor: str | None = None
    full: bool = False
    cardData: bool = False  # noqa: N815
    config: bool = False
    expand: tuple[str, ...] = ()


@router.api_route("/api/{kind:kind}", methods=GET)
async def get_list(call: Here, kind: str, wanted: Annotated[_Wanted, Query()]) -> Answer:
    if wanted.sort not in ORDERS:
        raise refusal(400, f"The local Hub cannot sort by {wanted.sort!r}.")
    if unknown := sorted(set(wanted.expand) - set(FIELDS)):
        raise refusal(400, f"The local Hub cannot expand {', '.join(unknown)}.")
    end = None if wanted.cursor is None else _read(wanted.cursor)
    repos = _visible(call.hub, kind, wanted, call.user, end)
    page = list(islice(repos, min(wanted.limit, PAGE)))
    is_last = next(repos, None) is None
    names = _names(wanted)
    records = [describe(repo, repo.at("main"), names) for repo in page]
    headers = (
        next_page(call, cursor=_write(_place(page[-1], wanted))) if page and not is_last else {}
    )
    return json_answer(records, headers=headers)


def _names(wanted: _Wanted) -> list[str]:
    if wanted.expand:
        return list(wanted.expand)
    names = list(FULL if wanted.full else BRIEF)
    return names + ["cardData"] * wanted.cardData + ["config"] * wanted.config


def newest(hub: LocalHub, kind: str, user: str | None, limit: int) -> tuple[list[Repo], int]:
    """The repos that changed last, and how many there are in all."""
    repos = list(_visible(hub, kind, _Wanted(sort="lastModified"), user))
    return repos[:limit], len(repos)


def _visible(
    hub: LocalHub, kind: str, wanted: _Wanted, user: str | None, before: Place | None = None
) -> Iterator[Repo]:
    """The wanted repos that a user may know of, the greatest first, from some place on."""
    places = _ordered(hub, kind, wanted)
    end = len(places) if before is None else bisect_left(places, before)
    for index in range(end - 1, -1, -1):
        repo = hub.repos[kind, places[index][1]]
        if not repo.private or may_read(hub, repo, user):
            yield repo


def _ordered(hub: LocalHub, kind: str, wanted: _Wanted) -> list[Place]:
    """The places of all repos that match, the greatest last."""
    key = (kind, wanted.model_copy(update=dict.fromkeys(_NOT_IN_KEY)))
    state = (Repo.num_changes, len(hub.repos))
    kept = hub.lists.get(key)
    if kept is None or kept[0] != state:
        places = sorted(_place(repo, wanted) for repo in _matching(hub, kind, wanted))
        if len(hub.lists) >= MAX_LISTS:
            hub.lists.clear()
        kept = hub.lists[key] = (state, places)
    found: list[Place] = kept[1]
    return found


def _place(repo: Repo, wanted: _Wanted) -> Place:
    return getattr(repo, ORDERS[wanted.sort]), repo.id


def _matching(hub: LocalHub, kind: str, wanted: _Wanted) -> Iterator[Repo]:
    tags = set(wanted.filter)
    search = (wanted.search or "").lower()
    for (repo_kind, _), repo in list(hub.repos.items()):
        if (
            repo_kind == kind
            and wanted.author in {None, repo.namespace}
            and search in repo.id.lower()
            and wanted.gated in {None, bool(repo.gated)}
            # Last, since it may read a card.
            and (not tags or tags.issubset(metadata(repo).tags))
            and (not wanted.pipeline_tag or wanted.pipeline_tag == metadata(repo).pipeline_tag)
        ):
            yield repo


def _write(place: Place) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _read(cursor: str) -> Place:
    try:
        value, repo_id = json.loads(base64.urlsafe_b64decode(cursor))
    except ValueError:
        raise refusal(400, "The cursor of this list is none that the local Hub gave.") from None
    return value, repo_id
