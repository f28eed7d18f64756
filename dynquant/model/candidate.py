"""A model on the Hub by its metadata alone, as the watcher sees it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

__all__ = ["SOURCES", "Candidate"]

SOURCES = ("full-precision", "low-precision")
"""How the weights of an original are stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model on the Hub, by its metadata.

    Attributes:
        sha: Its newest commit.
        tags: The tags on the Hub, those of the author and those that the Hub adds.
        model_type: Family in its config; empty while unknown.
        architectures: Classes in its config; empty while unknown.
        num_parameters: None while unknown.
        gated: The kind of its gate, `auto` or `manual`; empty without a gate.
        opted_out: Whether its card's metadata forbid quantization.
        form: The form of quantization that its config names; empty if it names none.
        files: Names of its files; None for a model that was only listed.
        weights: Names of the files that hold weights.
        fingerprint: Of the content of the weight files; empty while unknown.
    """

    repo_id: str
    sha: str
    author: str
    created_at: datetime
    last_modified: datetime
    tags: tuple[str, ...] = ()
    pipeline_tag: str = ""
    library: str = ""
    model_type: str = ""
    architectures: tuple[str, ...] = ()
    num_parameters: int | None = None
    likes: int = 0
    downloads: int = 0
    trending_score: float = 0
    gated: str = ""
    private: bool = False
    disabled: bool = False
    opted_out: bool = False
    form: str = ""
    files: tuple[str, ...] | None = None
    weights: tuple[str, ...] = ()
    fingerprint: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether this is the full metadata, and not only a list entry."""
        return self.files is not None

    @property
    def sources(self) -> str:
        """Which of `SOURCES` its weights are, as far as its config tells."""
        return SOURCES[bool(self.form)]

    @property
    def license(self) -> str:
        """Its license, as the Hub names it; empty without a license."""
        return next((tag[8:] for tag in self.tags if tag.startswith("license:")), "")
