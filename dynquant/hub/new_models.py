"""New models on the Hub: lists, the newest first, and all that the Hub tells of one model.

The Hub cannot be asked what came since some time, so its lists are read page by page until the
reader has seen enough. Only a page is in memory, and every request is counted.
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

from huggingface_hub import HfApi, ModelInfo, get_session, hf_hub_url
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)

from dynquant.errors import HubUnavailableError, ModelNotFoundError
from dynquant.hub.calls import TIMEOUT_SECS, HubCaller
from dynquant.hub.listing import Listing
from dynquant.model.candidate import Candidate
from dynquant.report.finished_files import PLAN

__all__ = ["HubNewModels", "ListOrder"]

T = TypeVar("T")

ListOrder = Literal["createdAt", "lastModified"]

_LISTED_FIELDS = (
    *("author", "createdAt", "disabled", "downloads", "gated", "lastModified", "library_name"),
    *("likes", "pipeline_tag", "private", "safetensors", "sha", "tags", "trendingScore"),
)
"""Card, config and files would be most of an answer, and few models need them."""

_PAGE = 500
_MAX_QUANTS = 1_000
_MAX_PATHS = 1_000
_MAX_PLAN_BYTES = 32_000_000
_LISTS = "the list of new models"
_OPT_OUT_KEYS = ("no-quantize", "no_quantize", "no-quantization")

_logger = logging.getLogger(__name__)


class HubNewModels:
    """Reads what is new.

    Args:
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).
        token: None is the one that huggingface_hub finds.
        sleep: Waits that many seconds between two tries.
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
        self.num_calls = 0
        self._page_size = page_size
        self._api = HfApi(endpoint=endpoint, token=token, library_name="dynquant")
        self._call = HubCaller.to_read(self._api.endpoint, sleep=sleep, on_try=self.count)

    def count(self) -> None:
        """One request more, also of others who ask on behalf of a sweep."""
        self.num_calls += 1

    def listed(self, order: ListOrder) -> Iterator[Candidate]:
        """All models, the latest first, as the Hub lists them; each once.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx; or the list turns in a circle.
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
            params = None  # the address of the next page has them all
            names = frozenset(str(each.get("id")) for each in page)
            if not page:
                return
            if names <= before:
                raise HubUnavailableError(
                    "The Hub gives the same page of its list again and again, so nobody knows "
                    "what lies behind it. Try again later."
                )
            # What is uploaded meanwhile may push models from one page to the next.
            yield from _candidates(each for each in page if str(each.get("id")) not in before)
            before = names

    def look_up(self, repo_id: str) -> Candidate:
        """A model with everything that the Hub tells of it.

        Raises:
            ModelNotFoundError: There is none, or nobody may read it.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        info = self._info(repo_id, None)
        found = _candidate(info)
        if found is None:
            raise ModelNotFoundError(f"'{repo_id}' has no commit on the Hub yet.")
        return found

    def fingerprint(self, repo_id: str, revision: str) -> str:
        """Of the weights at a commit; empty if the commit is gone.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx.
        """
        try:
            return _fingerprint(Listing.of(self._info(repo_id, revision)))
        except ModelNotFoundError:
            return ""

    def weights_uploaded_at(self, candidate: Candidate) -> datetime:
        """When the weights of a model, which was looked up, last changed.

        Raises:
            ModelNotFoundError: It is gone.
            HubUnavailableError: Network, rate limit, 5xx.
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
        """The repos that dynquant made of a model, whoever published them.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx.
        """
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
        """The commit that a repo of dynquant was made of; empty if it does not say.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx.
        """
        try:
            raw = json.loads(self._ask(partial(self._read, quant, PLAN), quant))
            sha = raw["revision_sha"]
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
        """A page of a list and the address of the next; the client's own lists retry unseen."""
        response = get_session().get(
            url, params=params, headers=self._headers(), timeout=TIMEOUT_SECS
        )
        hf_raise_for_status(response)
        content = response.json()
        entries = content if isinstance(content, list) else []
        page = [each for each in entries if isinstance(each, dict)]
        return page, response.links.get("next", {}).get("url")

    def _read(self, repo_id: str, path: str) -> bytes:
        url = hf_hub_url(repo_id, path, endpoint=self._api.endpoint)
        content = bytearray()
        with get_session().stream(
            "GET", url, headers=self._headers(), timeout=TIMEOUT_SECS, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _MAX_PLAN_BYTES:
                    break
        return bytes(content)

    def _headers(self) -> dict[str, str]:
        return build_hf_headers(token=self._api.token, library_name="dynquant")


def _candidates(page: Iterator[Mapping[str, Any]]) -> Iterator[Candidate]:
    for raw in page:
        try:
            found = _candidate(ModelInfo(**raw))
        except (KeyError, TypeError, ValueError, AttributeError):
            _logger.warning("The Hub lists something that is no model: %.100r", raw.get("id"))
            continue
        if found is not None:
            yield found


def _candidate(info: ModelInfo) -> Candidate | None:
    """What the rules need to know; None for a repo without a commit or a date."""
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
        is_quantized=bool(config.get("quantization_config") or config.get("quantization")),
        files=None if listing is None else tuple(listing.sizes),
        weights=() if listing is None else tuple(listing.weights),
        fingerprint="" if listing is None else _fingerprint(listing),
    )


def _fingerprint(listing: Listing) -> str:
    """Of names and contents of the weights; the same however often the card changes."""
    # A mirror may not name contents; the commit then stands for them.
    weights = [[name, listing.etags[name] or listing.sha] for name in listing.weights]
    return hashlib.sha256(json.dumps(weights).encode()).hexdigest() if weights else ""


def _opts_out(card: Mapping[str, Any]) -> bool:
    return card.get("dynquant") is False or any(card.get(key) is True for key in _OPT_OUT_KEYS)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(each for each in value if isinstance(each, str)) if isinstance(value, list) else ()
