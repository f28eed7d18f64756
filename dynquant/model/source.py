"""A model in a local folder, and its origin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dynquant.model.access import Access
from dynquant.model.origin import Origin

__all__ = ["ModelSource"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model in a local folder, and its origin.

    Attributes:
        name: Repo id, or the name of the local folder; never a path.
        folder: The folder of its files.
        is_repo: Whether it came from the Hub.
        revision_sha: Commit of the repo; empty for a local folder.
        license_fields: `license`, `license_name`, `license_link` of the card, as far as present.
        gated: The kind of the repo's gate, `auto` or `manual`; empty without a gate.
        gated_fields: The `extra_gated_*` fields of the card.
        is_private: Whether the repo is private.
        hub_id: The Hub's own id of the repo, see `model.origin.Origin`; may be empty.
        quantized_from: The models that its card says it is a quant of.
    """

    name: str
    folder: Path
    is_repo: bool
    revision_sha: str
    license_fields: Mapping[str, str]
    gated: str = ""
    gated_fields: Mapping[str, object] = field(default_factory=dict)
    is_private: bool = False
    hub_id: str = ""
    quantized_from: tuple[str, ...] = ()

    @property
    def origin(self) -> Origin:
        """The source that a quant of this model names."""
        return Origin(name=self.name, hub_id=self.hub_id)

    @property
    def access(self) -> Access:
        """Access to its repo."""
        return Access(is_private=self.is_private, gated=self.gated)
