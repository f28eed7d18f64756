"""New models on the Hub: lists, the newest first, and the Hub's metadata about one model.

The Hub's lists cannot be filtered by time, so they are read page by page until the reader has seen
enough. Only a page is in memory, and every request is counted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypeVar

from huggingface_hub import ModelInfo, get_session
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

from dynquant.errors import HubUnavailableError, ModelNotFoundError
from dynquant.hub.calls import TIMEOUT_SECS
from dynquant.hub.client import HubClient
from dynquant.hub.listing import Listing
from dynquant.model.candidate import Candidate
from dynquant.model.quantized_sources import quantized_form
from dynquant.report.finished_files import PLAN

__all__ = ["HubNewModels", "ListOrder"]

T = TypeVar("T")

ListOrder = Literal["createdAt", "lastModified"]

_LISTED_FIELDS = (
    *("author", "createdAt", "disabled", "downloads", "gated", "lastModified", "library_name"),
    *("likes", "pipeline_tag", "private", "safetensors", "sha", "tags", "trendingScore"),
)
"""Without card, config and files, which are large and needed of few models."""

_PAGE = 500
_MAX_QUANTS = 1_000
_MAX_PATHS = 1_000
_MAX_PLAN_BYTES = 32_000_000
_LISTS = "the list of new models"
_OPT_OUT_KEYS = ("no-quantize", "no_quantize", "no-quantization")

_logger = logging.getLogger(__name__)


class HubNewModels(HubClient):
    """Reads lists of models, and single models, for the watcher.

    Args:
        endpoint, token, sleep: As for `HubClient`.
        page_size: Models per request; the Hub may give fewer.

    Attributes:
        num_calls: Requests so far, tries that failed included.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        sleep: Callable[[float], None] = time.sleep,
        page_size: int = _PAGE,
    ) -> None:
        super().__init__(endpoint=endpoint, token=token, sleep=sleep, on_try=self.count)
        self.num_calls = 0
        self._page_size = page_size

    def count(self) -> None:
        """Count a request, also one that another client makes for a sweep."""
        self.num_calls += 1

    def listed(self, order: ListOrder) -> Iterator[Candidate]:
        """All models, the latest first, as the Hub lists them; each once.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx; or the Hub repeats a page.
        """
        url: str | None = f"{self._api.endpoint}/api/models"
        params: Mapping[str, Any] | None = {
            "sort": order,
            "limit": self._page_size,
            "expand": list(_LISTED_FIELDS),
        }
        before: frozenset[str] = frozenset()
        while url is not None:
            page, url = self._ask(partial(self._page, url, params), _LISTS)
            params = None  # the address of the next page contains them
            names = frozenset(str(each.get("id")) for each in page)
            if not page:
                return
            if names <= before:
                raise HubUnavailableError(
                    "The Hub gives the same page of its list again and again, so the rest of the "
                    "list cannot be read. Try again later."
                )
            # Models that are uploaded meanwhile push others from one page to the next.
            yield from _candidates(each for each in page if str(each.get("id")) not in before)
            before = names

    def look_up(self, repo_id: str) -> Candidate:
        """A model with all its metadata on the Hub.

        Raises:
            ModelNotFoundError: There is none, or no access to it.
        """
        info = self._info(repo_id, None)
        found = _candidate(info)
        if found is None:
            raise ModelNotFoundError(f"'{repo_id}' has no commit on the Hub yet.")
        return found

    def fingerprint(self, repo_id: str, revision: str) -> str:
        """A hash of the weights at a commit; empty if the commit is gone."""
        try:
            return _fingerprint(Listing.of(self._info(repo_id, revision)))
        except ModelNotFoundError:
            return ""

    def weights_uploaded_at(self, candidate: Candidate) -> datetime:
        """When the weights of a candidate that `look_up` returned last changed.

        Raises:
            ModelNotFoundError: It is gone.
        """
        repo_id, sha, paths = candidate.repo_id, candidate.sha, candidate.weights[:_MAX_PATHS]
        files = self._ask(
            lambda: self._api.get_paths_info(repo_id, list(paths), expand=True, revision=sha),
            repo_id,
        )
        dates = [
            each.last_commit.date
            for each in files
            if isinstance(each, RepoFile) and each.last_commit is not None
        ]
        return max(dates, default=candidate.last_modified)

    def dynquants_of(self, repo_id: str) -> tuple[str, ...]:
        """The repos that dynquant made of a model, of all publishers."""
        params = {
            "filter": [f"base_model:quantized:{repo_id}", "dynquant"],
            "sort": "createdAt",
            "limit": _MAX_QUANTS,
            "expand": ["sha"],
        }
        url = f"{self._api.endpoint}/api/models"
        page, _ = self._ask(partial(self._page, url, params), repo_id)
        return tuple(str(each["id"]) for each in page if "id" in each)

    def source_sha(self, quant: str) -> str:
        """The commit that a repo of dynquant was made from; empty if its plan does not say."""
        try:
            read = partial(self._read_file, quant, PLAN, max_bytes=_MAX_PLAN_BYTES)
            sha = json.loads(self._ask(read, quant))["revision_sha"]
        except (ModelNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return ""
        return sha if isinstance(sha, str) else ""

    def _info(self, repo_id: str, revision: str | None) -> ModelInfo:
        return self._ask(
            lambda: self._api.model_info(
                repo_id, revision=revision, files_metadata=True, timeout=TIMEOUT_SECS
            ),
            repo_id,
            revision,
        )

    def _ask(self, action: Callable[[], T], repo: str, revision: str | None = None) -> T:
        return self._call(action, repo=repo, revision=revision)

    def _page(
        self, url: str, params: Mapping[str, Any] | None
    ) -> tuple[Sequence[Mapping[str, Any]], str | None]:
        """A page of a list and the address of the next; the client's own call hides retries."""
        response = get_session().get(
            url, params=params, headers=self._request_headers(), timeout=TIMEOUT_SECS
        )
        hf_raise_for_status(response)
        content = response.json()
        entries = content if isinstance(content, list) else []
        page = [each for each in entries if isinstance(each, dict)]
        return page, response.links.get("next", {}).get("url")


def _candidates(page: Iterator[Mapping[str, Any]]) -> Iterator[Candidate]:
    for raw in page:
        try:
            found = _candidate(ModelInfo(**raw))
        except (KeyError, TypeError, ValueError, AttributeError):
            _logger.warning("An entry of the Hub's list cannot be read: %.100r", raw.get("id"))
            continue
        if found is not None:
            yield found


def _candidate(info: ModelInfo) -> Candidate | None:
    """The metadata that rules look at; None for a repo without a commit or a date."""
    created_at, last_modified = info.created_at, info.last_modified
    if created_at is None or last_modified is None or not info.sha:
        return None
    config: Mapping[str, Any] = info.config if isinstance(info.config, dict) else {}
    card: Mapping[str, Any] = info.card_data.to_dict() if info.card_data is not None else {}
    listing = Listing.of(info) if info.siblings is not None else None
    return Candidate(
        repo_id=info.id,
        sha=info.sha,
        author=info.author or info.id.partition("/")[0],
        created_at=created_at.astimezone(UTC),
        last_modified=last_modified.astimezone(UTC),
        tags=tuple(info.tags or ()),
        pipeline_tag=info.pipeline_tag or "",
        library=info.library_name or "",
        model_type=str(config.get("model_type") or ""),
        architectures=_texts(config.get("architectures")),
        num_parameters=info.safetensors.total if info.safetensors is not None else None,
        likes=info.likes or 0,
        downloads=info.downloads or 0,
        trending_score=info.trending_score or 0,
        gated=info.gated or "",
        private=bool(info.private),
        disabled=bool(info.disabled),
        opted_out=_opts_out(card),
        form=quantized_form(config, {}) or "",
        files=None if listing is None else tuple(listing.sizes),
        weights=() if listing is None else tuple(listing.weights),
        fingerprint="" if listing is None else _fingerprint(listing),
    )


def _fingerprint(listing: Listing) -> str:
    """A hash of names and contents of the weights; a new card does not change it."""
    # A mirror may leave out hashes of contents; the commit is used instead.
    weights = [[name, listing.etags[name] or listing.sha] for name in listing.weights]
    return hashlib.sha256(json.dumps(weights).encode()).hexdigest() if weights else ""


def _opts_out(card: Mapping[str, Any]) -> bool:
    return card.get("dynquant") is False or any(card.get(key) is True for key in _OPT_OUT_KEYS)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()
