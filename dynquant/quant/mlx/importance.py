"""Importance of a layer's weights: a sum of rank-one terms, in nats per squared error."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from dynquant.errors import SensitivitiesError
from dynquant.quant.mlx.arrays import scalar

__all__ = ["Importance", "StoredTerms", "Term", "importance_from_stored"]

StoredTerms = tuple[tuple[str, str], ...]
"""Rows and columns of each term as base64 of little-endian float32, for a JSON artefact."""


@dataclass(frozen=True)
class Term:
    """The outer product of `rows` (*lead, out) and `cols` (*lead, in), float32, for one role."""

    rows: mx.array
    cols: mx.array


@dataclass(frozen=True)
class Importance:
    """Importance of each weight w_oi: ΔKL per token ≈ ½ Σ_oi importance_oi · error_oi².

    Rows count over all leading axes of the weight (experts, heads) together. A layer
    that the text never reached has no terms; every weight then counts the same.
    """

    terms: tuple[Term, ...]

    @property
    def mass(self) -> float:
        """Summed importance of all weights."""
        return sum(scalar((t.rows * t.cols.sum(-1, keepdims=True)).sum()) for t in self.terms)

    def run_masses(self, length: int) -> mx.array:
        """Summed importance of each run of `length` neighbours in a row, (rows * in / length,)."""
        masses = []
        for term in self.terms:
            sums = term.cols.reshape(*term.cols.shape[:-1], -1, length).sum(-1)
            masses.append((term.rows[..., None] * sums[..., None, :]).reshape(-1))
        return sum(masses[1:], masses[0])

    def of_rows(self, rows: mx.array) -> mx.array:
        """Importance of the weights of some rows.

        Args:
            rows: Indices, (n,).

        Returns:
            (n, in), float32; (1, 1) ones without terms.
        """
        if not self.terms:
            return mx.ones((1, 1))
        parts = []
        for term in self.terms:
            cols = term.cols.reshape(-1, term.cols.shape[-1])
            parts.append(term.rows.reshape(-1)[rows][:, None] * cols[rows // term.rows.shape[-1]])
        return sum(parts[1:], parts[0])

    def to_stored(self) -> StoredTerms:
        """The terms as text."""
        return tuple((_to_text(term.rows), _to_text(term.cols)) for term in self.terms)

    @classmethod
    def from_stored(cls, terms: StoredTerms) -> Importance:
        """The terms from text; only for weights without leading axes.

        Raises:
            ValueError: A text is not base64 of float32 numbers.
        """
        return cls(tuple(Term(_from_text(rows), _from_text(cols)) for rows, cols in terms))


def _to_text(array: mx.array) -> str:
    return base64.b64encode(np.asarray(array, dtype="<f4").tobytes()).decode("ascii")


def _from_text(text: str) -> mx.array:
    return mx.array(np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4"))


def importance_from_stored(
    stored: Mapping[str, StoredTerms],
) -> dict[str, Importance]:
    """Path → importance, from `CostTable.importance`.

    Raises:
        SensitivitiesError: An entry is damaged.
    """
    try:
        return {path: Importance.from_stored(terms) for path, terms in stored.items()}
    except (ValueError, TypeError) as error:
        raise SensitivitiesError(
            "The importance vectors in the cost table are damaged. Measure again."
        ) from error
