"""The fields of the Convert page as records, and the targets that they name."""

from __future__ import annotations

from typing import NamedTuple

from dynquant.errors import InvalidOptionError
from dynquant.model.naming import TARGET_DECIMALS
from dynquant.quant.formats import (
    AFFINE_BITS,
    AFFINE_GROUP_SIZES,
    DEFAULT_MENU,
    FLOAT_FORMATS,
    UNQUANTIZED,
)
from dynquant.report.forecast import fitting_tenths
from dynquant.texts.defaults import CALIBRATIONS
from dynquant.web.model_lookup import ModelPreview
from dynquant.web.service import DEFAULT_CONTEXT_TOKENS

__all__ = [
    "BITS",
    "BY_BPW",
    "BY_MEMORY",
    "CONTEXTS",
    "DEFAULT_CHOICE",
    "DEFAULT_OTHERS",
    "FLOATS",
    "GROUP_SIZES",
    "MAX_BPW",
    "Choice",
    "OtherFields",
    "targets_of",
]

MAX_BPW = 8.5
"""Eight bits, with a scale and a bias for every 64 weights: more makes no measurable difference."""
BY_BPW, BY_MEMORY = "Bits per weight", "Memory of my Mac"
CONTEXTS = (4_096, 8_192, 16_384, 32_768, 65_536, 131_072)
_AS_IT_IS = "as it is"
BITS = (*map(str, AFFINE_BITS), _AS_IT_IS)
GROUP_SIZES = tuple(map(str, AFFINE_GROUP_SIZES))
FLOATS = tuple(fmt.name for fmt in FLOAT_FORMATS)


class Choice(NamedTuple):
    """The fields that the forecast depends on, in the order of the page."""

    model: str | None
    way: str
    bpw: float | None
    memory_gib: int
    context_tokens: int
    several: str
    bits: list[str]
    groups: list[str]
    floats: list[str]

    @property
    def formats(self) -> str:
        """Formats to choose from, with commas; empty for the default ones.

        Raises:
            InvalidOptionError: No format is left.
        """
        names = [
            f"{bits}g{group}" for bits in self.bits for group in self.groups if bits != _AS_IT_IS
        ]
        names += [UNQUANTIZED.name] * (_AS_IT_IS in self.bits) + self.floats
        if not names:
            raise InvalidOptionError("Leave at least one choice of bits, and one group size.")
        is_default = set(names) == {fmt.name for fmt in DEFAULT_MENU}
        return "" if is_default else ",".join(names)


class OtherFields(NamedTuple):
    """The other fields, in the order of the page."""

    calibration: str
    destination: str
    private: bool
    notify_url: str


DEFAULT_CHOICE = Choice(
    model=None,
    way=BY_BPW,
    bpw=4.5,
    memory_gib=16,
    context_tokens=DEFAULT_CONTEXT_TOKENS,
    several="",
    bits=list(BITS),
    groups=list(GROUP_SIZES),
    floats=[],
)
DEFAULT_OTHERS = OtherFields(
    calibration=next(iter(CALIBRATIONS)), destination="", private=False, notify_url=""
)


def targets_of(preview: ModelPreview, choice: Choice) -> tuple[float, ...]:
    """The bits per weight that the fields name.

    Raises:
        InvalidOptionError: The list of sizes holds something else than numbers, or no size is
            named.
        InfeasibleTargetError: The model does not fit the memory.
    """
    several = [part for part in choice.several.split(",") if part.strip()]
    if several:
        try:
            return tuple(dict.fromkeys(map(float, several)))
        except ValueError as error:
            raise InvalidOptionError(
                "Write several sizes as numbers with commas between them, such as 3.5, 4.5, 6."
            ) from error
    if choice.way == BY_MEMORY:
        cache_bytes = choice.context_tokens * (preview.cache_bytes_per_token or 0)
        target_bpw = fitting_tenths(
            preview.inventory,
            memory_bytes=choice.memory_gib << 30,
            cache_bytes=cache_bytes,
            max_bpw=MAX_BPW,
        )
        return (target_bpw,)
    if choice.bpw is None:
        raise InvalidOptionError("Write the bits per weight as a number, such as 4.5.")
    return (round(choice.bpw, TARGET_DECIMALS),)
