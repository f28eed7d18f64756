"""The source of a quant: its name, which another repo may take over, and its permanent id."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["HUB_ID", "Origin"]

HUB_ID = re.compile(r"[0-9A-Za-z]{1,64}")
"""The Hub's own id of a repo or an account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A model that is, or was, quantized.

    Attributes:
        name: Repo id, or the name of a local folder.
        hub_id: The Hub's own id of the repo, which survives a rename and differs for a new repo of
            the same name; empty for a folder, behind a mirror that leaves it out, and in plans of
            earlier versions.
    """

    name: str
    hub_id: str = ""

    def is_same_as(self, other: Origin) -> bool:
        """Compare the ids where both are known, else the names."""
        if self.hub_id and other.hub_id:
            return self.hub_id == other.hub_id
        return self.name == other.name
