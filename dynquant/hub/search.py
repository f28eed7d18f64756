"""What there is on the Hub: models by name, quants that dynquant made, and their figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from huggingface_hub import HfApi, ModelInfo, get_session, hf_hub_url
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)

from dynquant.errors import InvalidModelError
from dynquant.hub.calls import TIMEOUT_SECS, HubCaller
from dynquant.report.finished_files import PLAN, REPORT

__all__ = ["FoundModel", "HubSearch"]

_TAG = "dynquant"
"""On every card that dynquant writes."""

_LANGUAGE_MODEL = "text-generation"
"""The Hub's name for what such models are for, a tag of each."""

_EXPAND: Any = ["createdAt", "downloads", "gated", "private", "safetensors", "sha", "tags"]
_QUANTIZED = "base_model:quantized:"
"""Of a model whose card says that it is a quant of another."""
_MAX_PAPER_BYTES = 8_000_000
"""Of a plan or a report; a plan takes some 200 bytes a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A model as a list shows it.

    Attributes:
        sha: Its head.
        num_parameters: As the Hub counted them; None where it did not.
        gated: `auto` or `manual`; empty for an open one.
        created_at: None where the Hub does not say.
        is_quant: Whether it says to be a quant of another model.
    """

    repo_id: str
    sha: str
    downloads: int
    num_parameters: int | None
    gated: str
    is_private: bool
    created_at: datetime | None
    is_quant: bool = False


class HubSearch:
    """Asks the Hub for lists of models.

    Args:
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).
        token: None is the one that huggingface_hub finds, False is none at all.
        sleep: Waits that many seconds between two tries.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = HfApi(endpoint=endpoint, token=token, library_name="dynquant")
        self._call = HubCaller.to_read(self._api.endpoint, sleep=sleep)

    def page_url(self, repo_id: str) -> str:
        """Where people find a repo."""
        return f"{self._api.endpoint}/{repo_id}"

    def models(self, words: str, *, limit: int) -> tuple[FoundModel, ...]:
        """Models with `words` in their name, the most downloaded first."""
        return self._listed(limit, search=words, sort="downloads")

    def popular(self, *, limit: int) -> tuple[FoundModel, ...]:
        """Language models, the most downloaded first."""
        return self._listed(limit, filter=[_LANGUAGE_MODEL], sort="downloads")

    def finished(self, *, author: str | None = None, limit: int) -> tuple[FoundModel, ...]:
        """What dynquant published, the newest first; of one namespace, or of everybody."""
        return self._listed(limit, filter=[_TAG], author=author, sort="createdAt")

    def quants_of(self, repo_id: str, *, limit: int) -> tuple[FoundModel, ...]:
        """What dynquant made of a model, the most downloaded first."""
        tags = [_TAG, f"base_model:quantized:{repo_id}"]
        return self._listed(limit, filter=tags, sort="downloads")

    def about(self, repo_id: str) -> FoundModel:
        """One model.

        Raises:
            ModelNotFoundError: There is none, or no access to it.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        ask = partial(self._api.model_info, repo_id, expand=_EXPAND, timeout=TIMEOUT_SECS)
        return _found(self._call(ask, repo=repo_id))

    def papers(self, repo_id: str, revision: str) -> tuple[str, str]:
        """Contents of `dynquant/plan.json` and `dynquant/report.json`.

        Raises:
            ModelNotFoundError: No such repo or file, or no access to it.
            InvalidModelError: One of them is too large to be one of ours.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        plan, report = (
            self._call(
                partial(self._read, repo_id, name, revision), repo=repo_id, revision=revision
            )
            for name in (PLAN, REPORT)
        )
        return plan, report

    def _listed(self, limit: int, **wanted: str | list[str] | None) -> tuple[FoundModel, ...]:
        """One page of a list. The client's own way retries for half a minute, and people wait."""
        params = {name: value for name, value in wanted.items() if value is not None}

        def ask() -> list[ModelInfo]:
            response = get_session().get(
                f"{self._api.endpoint}/api/models",
                params={**params, "limit": limit, "expand": _EXPAND},
                headers=build_hf_headers(token=self._api.token, library_name="dynquant"),
                timeout=TIMEOUT_SECS,
            )
            hf_raise_for_status(response)
            return [ModelInfo(**each) for each in response.json()]

        return tuple(map(_found, self._call(ask, repo="the list of models")[:limit]))

    def _read(self, repo_id: str, name: str, revision: str) -> str:
        """A small file, from a stranger: it is cut off where it is too large to be ours."""
        url = hf_hub_url(repo_id, name, revision=revision, endpoint=self._api.endpoint)
        headers = build_hf_headers(token=self._api.token, library_name="dynquant")
        content = bytearray()
        with get_session().stream(
            "GET", url, headers=headers, timeout=TIMEOUT_SECS, follow_redirects=True
        ) as response:
            hf_raise_for_status(response)
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > _MAX_PAPER_BYTES:
                    raise InvalidModelError(
                        f"{name} of '{repo_id}' is too large to be one that dynquant wrote."
                    )
        return content.decode("utf-8", "replace")


def _found(info: ModelInfo) -> FoundModel:
    counted = info.safetensors.total if info.safetensors is not None else None
    return FoundModel(
        repo_id=info.id,
        sha=info.sha or "",
        downloads=info.downloads or 0,
        num_parameters=counted or None,
        gated=info.gated or "",
        is_private=bool(info.private),
        created_at=info.created_at,
        is_quant=any(tag.startswith(_QUANTIZED) for tag in info.tags or ()),
    )
