"""The files and metadata of a repo at one commit, and the repos that are refused for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelInfo

from dynquant.errors import (
    HubUnavailableError,
    InvalidModelError,
    Reason,
    UnsupportedModelError,
)
from dynquant.hub.local import gated_fields, license_fields
from dynquant.model.access import Access
from dynquant.model.files import CONFIG, has_odd_name, is_fetched, is_weights
from dynquant.model.limits import (
    MAX_LISTED_FILES,
    MAX_SHARDS,
    MAX_SMALL_FILE_BYTES,
    MAX_SMALL_FILES,
    file_too_large,
)
from dynquant.model.origin import HUB_ID
from dynquant.model.originals import quantized_from_card, quantized_from_tags, require_original
from dynquant.model.source import ModelSource

__all__ = ["Listing", "access_in", "hub_id_of", "refuse_unusable"]

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A repo at one commit.

    Attributes:
        repo: Its current name: the Hub follows renames and ignores letter case.
        sha: The commit.
        sizes: File name → bytes; None if the Hub does not tell.
        etags: File name → name of its blob in the cache; empty if unknown.
        tags: The Hub's tags of the repo.
        card: The front matter of its card.
        gated: `auto` or `manual`; empty for an open repo.
        is_private: Whether it is private.
        hub_id: The Hub's own id of the repo; empty if a mirror leaves it out.
    """

    repo: str
    sha: str
    sizes: Mapping[str, int | None]
    etags: Mapping[str, str]
    tags: tuple[str, ...]
    card: Mapping[str, Any]
    gated: str
    is_private: bool
    hub_id: str

    @classmethod
    def of(cls, info: ModelInfo) -> Listing:
        """The listing in an answer of the Hub to a request with `files_metadata=True`.

        Raises:
            InvalidModelError: The repo has no commit.
            HubUnavailableError: The answer does not list its files.
        """
        if not info.sha:
            raise InvalidModelError(
                f"'{info.id}' has no commit on the Hub yet. Check that this is the repo you mean."
            )
        if info.siblings is None:
            raise HubUnavailableError(
                f"The Hub, or the mirror in HF_ENDPOINT, does not list the files of '{info.id}'. "
                "Pass a local folder, or unset HF_ENDPOINT."
            )
        return cls(
            repo=info.id,
            sha=info.sha,
            sizes={each.rfilename: each.size for each in info.siblings},
            etags={
                each.rfilename: each.lfs.sha256 if each.lfs is not None else each.blob_id or ""
                for each in info.siblings
            },
            tags=tuple(info.tags or ()),
            card=info.card_data.to_dict() if info.card_data is not None else {},
            gated=info.gated or "",
            is_private=bool(info.private),
            hub_id=hub_id_of(info),
        )

    def is_other_answer_than(self, other: Listing) -> bool:
        """Whether both are of one commit, which never changes, and yet differ."""
        return (self.repo, self.sha) == (other.repo, other.sha) and self != other

    def is_same_model_as(self, other: Listing) -> bool:
        """Whether both commits hold the same files of a model; cards are not compared."""

        def blobs(listing: Listing) -> dict[str, str]:
            names = {*listing.weights, *listing.others} - {"README.md"}
            return {name: listing.etags[name] for name in names}

        return self.sha == other.sha or blobs(self) == blobs(other)

    @property
    def quantized_from(self) -> tuple[str, ...]:
        """The models that it is a quant of, as its card says."""
        return quantized_from_tags(self.tags) or quantized_from_card(self.card)

    @property
    def weights(self) -> list[str]:
        """Names of the weight files that mlx-lm reads, sorted."""
        return sorted(filter(is_weights, self.sizes))

    @property
    def others(self) -> list[str]:
        """Names of the other files that are needed, sorted."""
        return sorted(filter(is_fetched, self.sizes))

    @property
    def unsized(self) -> list[str]:
        """Names of the needed files whose size is unknown, sorted."""
        return [name for name in (*self.weights, *self.others) if self.sizes[name] is None]

    def sized(self, sizes: Mapping[str, int | None]) -> Listing:
        """The listing with these sizes added.

        Raises:
            InvalidModelError: A file beside the weights is too large.
        """
        known = replace(self, sizes={**self.sizes, **sizes})
        _refuse_large(known)
        return known

    def num_bytes(self, names: Iterable[str]) -> int:
        """Sum of the known sizes of these files."""
        return sum(self.sizes[name] or 0 for name in names)

    def source(self, folder: Path) -> ModelSource:
        """The model with its files in `folder`."""
        return ModelSource(
            name=self.repo,
            folder=folder,
            is_repo=True,
            revision_sha=self.sha,
            license_fields=license_fields(self.card),
            gated=self.gated,
            gated_fields=gated_fields(self.card),
            is_private=self.is_private,
            hub_id=self.hub_id,
            quantized_from=self.quantized_from,
        )


def access_in(info: ModelInfo) -> Access:
    """Visibility and gate of a repo."""
    return Access(is_private=bool(info.private), gated=info.gated or "")


def hub_id_of(info: ModelInfo) -> str:
    """The Hub's own id of a repo, which the client keeps without a documented attribute."""
    found = vars(info).get("_id")
    return found if isinstance(found, str) and HUB_ID.fullmatch(found) else ""


def refuse_unusable(listing: Listing, *, allow_quantized: bool) -> None:
    """Refuse a repo whose metadata shows that it cannot be converted.

    Args:
        listing: The repo.
        allow_quantized: Whether a quant is accepted as a source.

    Raises:
        UnsupportedModelError: mlx-lm cannot read its weights, or it is an adapter, or a quant of
            another publisher's model.
        InvalidModelError: No config or no weights, or too many or too large files.
    """
    root = [name for name in listing.sizes if "/" not in name]
    weights = listing.weights
    if "adapter_config.json" in root and not weights:
        raise UnsupportedModelError(
            f"'{listing.repo}' is an adapter, not a whole model. Merge it into its base model "
            "first, or pass the base model.",
            reason=Reason.ADAPTER,
        )
    if not weights:
        raise _no_weights(listing, root)
    if CONFIG not in root:
        raise InvalidModelError(
            f"'{listing.repo}' has no config.json, which names the architecture. Pass the repo of "
            "a model for transformers or mlx-lm.",
            reason=Reason.NO_CONFIG,
        )
    _refuse_absurd(listing)
    if not allow_quantized:
        require_original(listing.repo, quantized_from=listing.quantized_from)


def _refuse_absurd(listing: Listing) -> None:
    """Refuse a repo with too many files, odd file names, or a file that is too large."""
    for names, most in (
        ([*listing.sizes], MAX_LISTED_FILES),
        (listing.weights, MAX_SHARDS),
        (listing.others, MAX_SMALL_FILES),
    ):
        if len(names) > most:
            raise InvalidModelError(
                f"'{listing.repo}' has {len(names):,} files such as '{names[0][:100]}', and no "
                f"model needs more than {most:,}. Ask the model's author."
            )
    if odd := [name for name in (*listing.weights, *listing.others) if has_odd_name(name)]:
        raise InvalidModelError(
            f"'{listing.repo}' has a file with a name that no model needs: '{odd[0][:50]}'. Ask "
            "the model's author."
        )
    _refuse_large(listing)


def _refuse_large(listing: Listing) -> None:
    for name in listing.others:
        if (listing.sizes[name] or 0) > MAX_SMALL_FILE_BYTES:
            raise file_too_large(name)


def _no_weights(listing: Listing, root: Sequence[str]) -> UnsupportedModelError | InvalidModelError:
    if any(name.endswith(".safetensors") for name in listing.sizes):
        return UnsupportedModelError(
            f"The safetensors files of '{listing.repo}' are not named 'model*.safetensors' at its "
            "top, so mlx-lm does not read them. Look for the same model in the layout of "
            "transformers.",
            reason=Reason.FOREIGN_LAYOUT,
        )
    if any(name.endswith(_PICKLED) for name in root):
        return UnsupportedModelError(
            f"'{listing.repo}' has only PyTorch weights (.bin or .pt), which can run code when "
            "opened. Convert them to safetensors first, for example with "
            "https://huggingface.co/spaces/safetensors/convert.",
            reason=Reason.PICKLED_WEIGHTS,
        )
    if any(name.endswith(".gguf") for name in root):
        return UnsupportedModelError(
            f"'{listing.repo}' holds GGUF files, which are made for llama.cpp. Pass the original "
            "model that they were made from.",
            reason=Reason.GGUF,
        )
    return InvalidModelError(
        f"'{listing.repo}' holds no weights: no file is named 'model*.safetensors'. Check that "
        "this is the repo you mean.",
        reason=Reason.NO_WEIGHTS,
    )
