"""Quantization formats and their stored size, exact to the bit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from dynquant.errors import InvalidOptionError

__all__ = [
    "AFFINE_BITS",
    "AFFINE_GROUP_SIZES",
    "DEFAULT_MENU",
    "FLOAT_FORMATS",
    "UNQUANTIZED",
    "QuantFormat",
    "parse_menu",
]

AFFINE_BITS = (2, 3, 4, 5, 6, 8)
AFFINE_GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True, slots=True, order=True)
class QuantFormat:
    """How one layer is stored.

    `affine` keeps one scale and one bias, in the weight's own dtype, per
    `group_size` weights; the float modes keep one 8-bit scale per group;
    `unquantized` keeps the weight as it is (`bits` and `group_size` are 0).
    """

    bits: int
    group_size: int
    mode: str = "affine"

    @property
    def name(self) -> str:
        """Short name, as `--formats` takes it: `4g64`, `mxfp4`, `unquantized`."""
        return f"{self.bits}g{self.group_size}" if self.mode == "affine" else self.mode

    @classmethod
    def from_name(cls, name: str) -> QuantFormat:
        """The format called `name`.

        Raises:
            InvalidOptionError: No format has this name.
        """
        if named := _NAMED.get(name):
            return named
        if match := re.fullmatch(r"(\d+)g(\d+)", name):
            bits, group_size = int(match[1]), int(match[2])
            if bits in AFFINE_BITS and group_size in AFFINE_GROUP_SIZES:
                return cls(bits, group_size)
        raise InvalidOptionError(
            f"There is no format '{name}'. Affine formats are BITSgGROUP_SIZE with bits in "
            f"{_listed(AFFINE_BITS)} and group sizes in {_listed(AFFINE_GROUP_SIZES)}, such as "
            f"'4g64'; the others are {_listed(sorted(_NAMED))}."
        )

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a weight of `shape` (..., in) can be stored so: the group divides the width."""
        return self.mode == "unquantized" or shape[-1] % self.group_size == 0

    def stored_bits(self, shape: Sequence[int], dtype_bits: int) -> int:
        """Size of a weight of `shape` in bits: codes, scales and biases.

        Args:
            shape: Shape of the weight, (..., in); `fits(shape)` must hold.
            dtype_bits: Width of the weight's own dtype, 16 or 32.
        """
        num_weights = prod(shape)
        if self.mode == "unquantized":
            return num_weights * dtype_bits
        num_groups = num_weights // self.group_size
        per_group = 2 * dtype_bits if self.mode == "affine" else 8
        return num_weights * self.bits + num_groups * per_group


UNQUANTIZED = QuantFormat(0, 0, "unquantized")
FLOAT_FORMATS = (
    QuantFormat(4, 32, "mxfp4"),
    QuantFormat(4, 16, "nvfp4"),
    QuantFormat(8, 32, "mxfp8"),
)
DEFAULT_MENU = (
    *(QuantFormat(bits, group) for bits in AFFINE_BITS for group in AFFINE_GROUP_SIZES),
    UNQUANTIZED,
)
_NAMED = {fmt.name: fmt for fmt in (*FLOAT_FORMATS, UNQUANTIZED)}


def parse_menu(text: str) -> tuple[QuantFormat, ...]:
    """Formats of a comma-separated list of names, sorted and without repeats.

    Raises:
        InvalidOptionError: A name is unknown or the list is empty.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise InvalidOptionError("--formats is empty; name at least one, such as '4g64'.")
    return tuple(sorted({QuantFormat.from_name(name) for name in names}))


def _listed(values: Sequence[object]) -> str:
    return ", ".join(str(value) for value in values)
