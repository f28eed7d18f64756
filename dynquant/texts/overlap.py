"""The share of one text that another contains, regardless of lines, order and tokens.

A text is compared by its *stretches*: 50 consecutive letters and digits, without the characters
between them. So line breaks, indentation, punctuation, markup and the tokenizer have no effect.
Each stretch counts once: a license header at the top of a thousand files weighs as much as a single
header.

Of a long text only the stretches with the smallest hashes are kept. Two texts are compared on the
hashes that both would have kept; the share found there estimates the share of all stretches.

Sources: GPT-4 Technical Report (arXiv:2303.08774), appendix C, for stretches of 50 characters
without spaces and symbols; Broder, "On the resemblance and containment of documents" (1997), for
the estimate from the smallest hashes.
"""

from __future__ import annotations

import base64
import re
import unicodedata
from dataclasses import dataclass

import numpy as np

__all__ = ["STRETCH_LETTERS", "Sketch", "Sketcher", "is_too_much", "share_of"]

STRETCH_LETTERS = 50
"""Some ten English words; phrases and imports common to unrelated texts are shorter."""

_MAX_SHARE = 0.05  # decision 0018: unrelated texts of one kind share up to 2 %
_MIN_SHARED = 3  # fewer may be chance where few were compared
_MAX_HASHES = 1 << 20  # of a sketch: 8 MiB
_CHUNK_LETTERS = 1 << 20
_ALL = 2**64 - 1
_BETWEEN = re.compile(r"[\W_]+")
_BASE = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: odd, and its bits look random
_INVERSE = pow(_BASE, -1, 2**64)


@dataclass(frozen=True, eq=False)
class Sketch:
    """The smallest hashes of a text's stretches.

    Attributes:
        hashes: (n,), uint64, ascending, each once.
        limit: Every stretch of the text with a hash up to this is in `hashes`.
    """

    hashes: np.ndarray
    limit: int = _ALL

    def shortened(self, num_hashes: int) -> Sketch:
        """The `num_hashes` smallest of these."""
        if len(self.hashes) <= num_hashes:
            return self
        kept = self.hashes[:num_hashes]
        return Sketch(kept, int(kept[-1]))

    def to_text(self) -> str:
        """The sketch for an artefact: limit and hashes, little-endian, in base64."""
        numbers = np.concatenate([np.array([self.limit], dtype=np.uint64), self.hashes])
        return base64.b64encode(numbers.astype("<u8").tobytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> Sketch:
        """The sketch in an untrusted text.

        Raises:
            ValueError: The text is malformed.
        """
        numbers = np.frombuffer(base64.b64decode(text, validate=True), dtype="<u8")
        if not len(numbers):
            raise ValueError(text)
        limit, hashes = int(numbers[0]), _distinct(numbers[1:].astype(np.uint64))
        return cls(hashes[hashes <= limit], limit)


class Sketcher:
    """Makes the sketch of a text that is passed in pieces.

    Args:
        max_hashes: Number of hashes to keep; memory does not grow with the text.
    """

    def __init__(self, *, max_hashes: int = _MAX_HASHES) -> None:
        self._max_hashes = max_hashes
        self._sketch = Sketch(np.zeros(0, dtype=np.uint64))
        self._pieces: list[str] = []
        self._num_letters = 0

    def add(self, piece: str) -> None:
        """Append `piece` to the text; stretches may cross pieces."""
        letters = _letters(piece)
        self._pieces.append(letters)
        self._num_letters += len(letters)
        if self._num_letters >= _CHUNK_LETTERS:
            self._fold()

    def sketch(self) -> Sketch:
        """The sketch of all pieces so far."""
        self._fold()
        return self._sketch

    def _fold(self) -> None:
        letters, known = "".join(self._pieces), self._sketch
        fresh = _stretch_hashes(letters)
        hashes = _distinct(np.concatenate([known.hashes, fresh[fresh <= np.uint64(known.limit)]]))
        self._sketch = Sketch(hashes, known.limit).shortened(self._max_hashes)
        self._pieces = [letters[max(0, len(letters) - STRETCH_LETTERS + 1) :]]
        self._num_letters = len(self._pieces[0])


def share_of(text: Sketch, *, known: Sketch) -> float:
    """Share of the stretches of `text` that `known` has too, 0 to 1; 0 without stretches."""
    num_compared, num_shared = _compared(text, known)
    return num_shared / num_compared if num_compared else 0.0


def is_too_much(text: Sketch, *, known: Sketch) -> bool:
    """Whether figures on `text` would flatter a model that was calibrated on `known`.

    They would if `known` has more than 5 % of its stretches. Unrelated texts of one kind share up
    to 2 %; the effect of 5 % on a figure is within its standard error (decision 0018).
    """
    return share_of(text, known=known) > _MAX_SHARE and _compared(text, known)[1] >= _MIN_SHARED


def _compared(text: Sketch, known: Sketch) -> tuple[int, int]:
    """Number of stretches of `text` up to both limits, and of those that `known` has too."""
    limit = np.uint64(min(text.limit, known.limit))
    mine = text.hashes[text.hashes <= limit]
    return len(mine), int(np.isin(mine, known.hashes, assume_unique=True).sum())


def _distinct(hashes: np.ndarray) -> np.ndarray:
    """`hashes` in ascending order, each once; `np.unique` takes ten times as long."""
    ascending = np.sort(hashes)
    is_new = np.concatenate([[True], ascending[1:] != ascending[:-1]])[: len(ascending)]
    distinct: np.ndarray = ascending[is_new]
    return distinct


def _letters(text: str) -> str:
    """Letters and digits alone, of one case and one spelling in Unicode."""
    return _BETWEEN.sub("", unicodedata.normalize("NFKC", text).casefold())


def _stretch_hashes(letters: str) -> np.ndarray:
    """Hash of every stretch, sum of letter[k] · base^k mod 2^64, from sums of all before."""
    count = len(letters) - STRETCH_LETTERS + 1
    if count <= 0:
        return np.zeros(0, dtype=np.uint64)
    codes = np.frombuffer(letters.encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    sums = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(codes * _powers(_BASE, len(codes)), out=sums[1:])
    hashes: np.ndarray = (sums[STRETCH_LETTERS:] - sums[:count]) * _powers(_INVERSE, count)
    return hashes


def _powers(base: int, count: int) -> np.ndarray:
    """base^0, base^1, …, (count,), uint64, mod 2^64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[0] = 1
    return np.cumprod(factors)
