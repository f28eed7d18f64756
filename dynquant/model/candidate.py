"""A model on the Hub by its metadata alone, before the watcher decides on it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

__all__ = ["Candidate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model on the Hub, by its metadata.

    Attributes:
        sha: Its newest commit.
        tags: The Hub's own words on it, the author's among them.
        model_type: Family in its config; empty while unknown.
        architectures: Classes in its config; empty while unknown.
        num_parameters: None while unknown.
        gated: How it lets people in: `auto` or `manual`; empty for an open one.
        opted_out: Whether its card's metadata forbid what dynquant does.
        is_quantized: Whether its config says that the weights are quantized.
        files: Names of its files; None for a model that was only listed.
        weights: Names of the files that hold weights.
        fingerprint: Of the content of these; empty while unknown.
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
    is_quantized: bool = False
    files: tuple[str, ...] | None = None
    weights: tuple[str, ...] = ()
    fingerprint: str = ""

    @property
    def is_whole(self) -> bool:
        """Whether everything is known that the Hub can tell."""
        return self.files is not None

    @property
    def license(self) -> str:
        """What the Hub calls its license; empty if it has none."""
        return next((tag[8:] for tag in self.tags if tag.startswith("license:")), "")
