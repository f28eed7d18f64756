"""Lists of models on the Hub: by name, by downloads, those that dynquant made; their figures."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from huggingface_hub import ModelInfo, get_session
from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

from dynquant.errors import InvalidModelError
from dynquant.hub.calls import TIMEOUT_SECS
from dynquant.hub.client import HubClient
from dynquant.report.finished_files import PLAN, REPORT

__all__ = ["FoundModel", "HubSearch"]

_TAG = "dynquant"
"""On every card that dynquant writes."""

_POPULAR = ("text-generation", "image-text-to-text")
"""Tags of the models that a visitor is offered; each costs one request."""

_EXPAND: Any = ["createdAt", "downloads", "gated", "private", "safetensors", "sha", "tags"]
_QUANTIZED = "base_model:quantized:"
"""Begins a tag of a model whose card says that it is a quant of another."""
_GGUF = "gguf"
"""The tag that the Hub gives to a repo with GGUF files, and the end of the name of most."""
_MAX_FACTS_BYTES = 8_000_000
"""Of a plan or a report; a plan has about 200 bytes a layer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """A model as a list shows it.

    Attributes:
        sha: Its head.
        num_parameters: The Hub's count; None if it has none.
        gated: `auto` or `manual`; empty for an open model.
        created_at: None if the Hub does not say.
        is_quant: Whether it is a quant of another model as its card says, or holds GGUF files.
    """

    repo_id: str
    sha: str
    downloads: int
    num_parameters: int | None
    gated: str
    is_private: bool
    created_at: datetime | None
    is_quant: bool = False


class HubSearch(HubClient):
    """Asks the Hub for lists of models."""

    def page_url(self, repo_id: str) -> str:
        """Address of a repo's page."""
        return f"{self._api.endpoint}/{repo_id}"

    def models(self, words: str, *, limit: int) -> tuple[FoundModel, ...]:
        """Models with `words` in their name, the most downloaded first."""
        return self._listed(limit, search=words, sort="downloads")

    def popular(self, *, limit: int) -> tuple[FoundModel, ...]:
        """Models that write text, of text or of images too, the most downloaded first."""
        found = [
            each for tag in _POPULAR for each in self._listed(limit, filter=[tag], sort="downloads")
        ]
        return tuple(sorted(found, key=lambda each: -each.downloads)[:limit])

    def finished(self, *, author: str | None = None, limit: int) -> tuple[FoundModel, ...]:
        """Models that dynquant published, the newest first; of one namespace, or of all."""
        return self._listed(limit, filter=[_TAG], author=author, sort="createdAt")

    def quants_of(self, repo_id: str, *, limit: int) -> tuple[FoundModel, ...]:
        """Quants of a model that dynquant made, the most downloaded first."""
        tags = [_TAG, _QUANTIZED + repo_id]
        return self._listed(limit, filter=tags, sort="downloads")

    def about(self, repo_id: str) -> FoundModel:
        """One model.

        Raises:
            ModelNotFoundError: There is none, or no access to it.
        """
        ask = partial(self._api.model_info, repo_id, expand=_EXPAND, timeout=TIMEOUT_SECS)
        return _found(self._call(ask, repo=repo_id))

    def plan_and_report(self, repo_id: str, revision: str) -> tuple[str, str]:
        """Contents of `dynquant/plan.json` and `dynquant/report.json`.

        Raises:
            ModelNotFoundError: No such repo or file, or no access to it.
            InvalidModelError: One of them is too large; dynquant did not write it.
        """
        return self._read(repo_id, PLAN, revision), self._read(repo_id, REPORT, revision)

    def _listed(self, limit: int, **wanted: str | list[str] | None) -> tuple[FoundModel, ...]:
        """One page of a list; the client's own call would retry for half a minute."""
        params = {name: value for name, value in wanted.items() if value is not None}

        def ask() -> list[ModelInfo]:
            response = get_session().get(
                f"{self._api.endpoint}/api/models",
                params={**params, "limit": limit, "expand": _EXPAND},
                headers=self._request_headers(),
                timeout=TIMEOUT_SECS,
            )
            hf_raise_for_status(response)
            return [ModelInfo(**each) for each in response.json()]

        return tuple(map(_found, self._call(ask, repo="the list of models")[:limit]))

    def _read(self, repo_id: str, name: str, revision: str) -> str:
        content = self._call(
            lambda: self._read_file(
                repo_id, name, max_bytes=_MAX_FACTS_BYTES + 1, revision=revision
            ),
            repo=repo_id,
            revision=revision,
        )
        if len(content) > _MAX_FACTS_BYTES:
            raise InvalidModelError(
                f"{name} of '{repo_id}' is too large; dynquant did not write it."
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
        is_quant=info.id.lower().endswith(_GGUF)
        or any(tag == _GGUF or tag.startswith(_QUANTIZED) for tag in info.tags or ()),
    )
