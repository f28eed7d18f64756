"""Which model a quant was made of: its name may pass to another, its id on the Hub may not."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["HUB_ID", "Origin"]

HUB_ID = re.compile(r"[0-9A-Za-z]{1,64}")
"""What the Hub's own id of a repo or an account may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A model that is, or was, quantized.

    Attributes:
        name: Repo id, or the name of a local folder.
        hub_id: The Hub's own id of the repo, which a rename keeps and a new repo of the same name
            does not get; empty for a folder, behind a mirror that leaves it out, and in plans of
            earlier versions.
    """

    name: str
    hub_id: str = ""

    def is_same_as(self, other: Origin) -> bool:
        """By the ids where both are known, else by the names."""
        if self.hub_id and other.hub_id:
            return self.hub_id == other.hub_id
        return self.name == other.name
