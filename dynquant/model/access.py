"""Read access to a repo on the Hub: private, gated or public, and the order of these."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Access"]

_GATES = ("", "auto", "manual")
"""From open to closed: no gate, acceptance of the terms, approval by the owner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Access to a repo.

    Attributes:
        is_private: Whether only its owner, or the owner's organization, may read it.
        gated: `auto` or `manual`; empty for a repo without a gate.
    """

    is_private: bool = False
    gated: str = ""

    def is_more_open_than(self, asked: Access) -> bool:
        """Whether more people may read this repo than a repo with the access `asked`."""
        if self.is_private:
            return False
        return asked.is_private or self.has_weaker_gate_than(asked)

    def has_weaker_gate_than(self, asked: Access) -> bool:
        """Whether the gate is weaker than that of `asked`, private or not."""
        return _rank(self.gated) < _rank(asked.gated)

    def closed_like(self, other: Access) -> Access:
        """The access that is as closed as the more closed of the two, in each respect."""
        gate = max(self.gated, other.gated, key=_rank)
        return Access(is_private=self.is_private or other.is_private, gated=gate)

    def __str__(self) -> str:
        if self.is_private:
            return "private"
        return f"gated ({self.gated})" if self.gated else "public"


def _rank(gated: str) -> int:
    """The rank of a gate; an unknown kind of gate counts as the most closed."""
    return _GATES.index(gated) if gated in _GATES else len(_GATES)
