"""Model previews from config and headers on the Hub, without downloading weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

from dynquant.errors import (
    DynquantError,
    ModelNotFoundError,
    QuantizedSourceError,
    Reason,
    RequestError,
)
from dynquant.hub.listing import Listing
from dynquant.hub.models import HubModels
from dynquant.hub.search import FoundModel, HubSearch
from dynquant.model.naming import repo_in
from dynquant.quant.header_inventory import header_inventory
from dynquant.quant.plan import ModelInventory
from dynquant.report.forecast import one_layer_inventory
from dynquant.web.single_flight import SingleFlightCache

__all__ = ["ModelLookup", "ModelPreview", "model_id"]

OpenHub = Callable[[], AbstractContextManager[HubModels]]

_FRESH_SECS = 300.0
_MAX_TEXT = 300
_MAX_QUANTS = 8
_SENTENCES: Mapping[Reason, str] = {
    Reason.MODEL_NOT_FOUND: (
        "There is no model '{}' on the Hub, or it is private. Check the spelling."
    ),
}
"""In place of the Hub adapter's sentences, which speak of command-line options."""
_ID = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class ModelPreview:
    """A model that could be quantized.

    Attributes:
        repo_id: Its current name.
        hub_id: The Hub's own id of it; see `model.origin.Origin`.
        license: From its card; empty if the card names no license.
        gated: `auto` or `manual`; empty for an open model.
        is_private: Whether only some accounts may see it.
        model_type: Family; empty if the config is gated.
        inventory: Its layers, from the headers; a rough estimate where the headers are gated.
        is_rough: Whether `inventory` is estimated from the number of parameters.
        cache_bytes_per_token: Of the key-value cache; None if unknown.
        quants: Quants that dynquant made of it before.
        notes: Sentences on parts of it that a quant lacks.
    """

    repo_id: str
    hub_id: str
    revision_sha: str
    license: str
    gated: str
    is_private: bool
    downloads: int
    model_type: str
    inventory: ModelInventory
    is_rough: bool
    cache_bytes_per_token: int | None
    quants: tuple[FoundModel, ...]
    notes: tuple[str, ...] = ()


def model_id(text: object) -> str:
    """The model id in typed or pasted text: `org/name`, or the address of its page on the Hub.

    Raises:
        ModelNotFoundError: The text holds no id.
    """
    # A program that calls the page's endpoint may send any type.
    typed = repo_in(text[:_MAX_TEXT]) if isinstance(text, str) else ""
    if not _ID.fullmatch(typed):
        raise ModelNotFoundError(
            "This is not the name of a model. Type one such as 'Qwen/Qwen3-8B', or paste the "
            "address of its page on the Hub.",
            reason=Reason.INVALID_ID,
        )
    return typed


class ModelLookup:
    """Looks models up on the Hub, and keeps the previews for some minutes.

    Args:
        search: Searches models.
        open_hub: Opens the Hub for one look-up.
    """

    def __init__(self, search: HubSearch, *, open_hub: OpenHub) -> None:
        self._search = search
        self._open_hub = open_hub
        self._found: SingleFlightCache[str, ModelPreview] = SingleFlightCache(
            fresh_secs=_FRESH_SECS
        )

    def __call__(self, text: str) -> ModelPreview:
        """The model that `text` names.

        Raises:
            ModelNotFoundError, InvalidModelError, UnsupportedModelError: It cannot be converted.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        name = model_id(text)
        try:
            return self._found(name, lambda: self._look_up(name))
        except QuantizedSourceError as error:
            raise QuantizedSourceError(
                name, form=error.form, base_model=error.base_model, remedy=""
            ) from error
        except RequestError as error:
            if error.reason not in _SENTENCES:
                raise
            sentence = _SENTENCES[error.reason].format(name)
            raise type(error)(sentence, reason=error.reason) from error

    def knows(self, text: str) -> bool:
        """Whether the preview of the model that `text` names is still fresh."""
        try:
            return self._found.is_fresh(model_id(text))
        except ModelNotFoundError:  # an invalid id is refused without the Hub
            return True

    def _look_up(self, name: str) -> ModelPreview:
        with self._open_hub() as hub:
            listing = hub.look_up(name)
            about = self._search.about(listing.repo)
            try:
                source = hub.fetch_headers(listing.repo, revision=listing.sha)
            except DynquantError:
                if not listing.gated:
                    raise
                return self._rough(listing, about)
            headers = header_inventory(source)
        return self._preview(
            listing,
            about,
            headers.inventory,
            model_type=headers.inventory.model_type,
            cache_bytes_per_token=headers.cache_bytes_per_token,
            notes=headers.notes,
        )

    def _rough(self, listing: Listing, about: FoundModel) -> ModelPreview:
        """A gated model, of which only the number of parameters is public."""
        num_parameters = about.num_parameters or listing.num_bytes(listing.weights) // 2
        inventory = one_layer_inventory(num_parameters)
        return self._preview(listing, about, inventory, is_rough=True)

    def _preview(
        self,
        listing: Listing,
        about: FoundModel,
        inventory: ModelInventory,
        *,
        model_type: str = "",
        is_rough: bool = False,
        cache_bytes_per_token: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> ModelPreview:
        return ModelPreview(
            repo_id=listing.repo,
            hub_id=listing.hub_id,
            revision_sha=listing.sha,
            license=str(listing.card.get("license_name") or listing.card.get("license") or ""),
            gated=listing.gated,
            is_private=listing.is_private,
            downloads=about.downloads,
            model_type=model_type,
            inventory=inventory,
            is_rough=is_rough,
            cache_bytes_per_token=cache_bytes_per_token,
            quants=self._search.quants_of(listing.repo, limit=_MAX_QUANTS),
            notes=notes,
        )
