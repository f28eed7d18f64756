"""The fields of the Convert page as records, and the targets that they name."""

from __future__ import annotations

from typing import NamedTuple

from dynquant.errors import InvalidOptionError
from dynquant.quant.formats import DEFAULT_MENU, UNQUANTIZED
from dynquant.report.forecast import fitting_tenths
from dynquant.web.model_lookup import ModelPreview

__all__ = ["AS_IT_IS", "BY_BPW", "BY_MEMORY", "MAX_BPW", "Choice", "OtherFields", "targets_of"]

MAX_BPW = 8.5
"""Eight bits, with a scale and a bias for every 64 weights: more makes no measurable difference."""
BY_BPW, BY_MEMORY = "Bits per weight", "Memory of my Mac"
AS_IT_IS = "as it is"


class Choice(NamedTuple):
    """The fields that the forecast depends on, in the order of the page."""

    model: str | None
    way: str
    bpw: float
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
            f"{bits}g{group}" for bits in self.bits for group in self.groups if bits != AS_IT_IS
        ]
        names += [UNQUANTIZED.name] * (AS_IT_IS in self.bits) + self.floats
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


def targets_of(preview: ModelPreview, choice: Choice) -> tuple[float, ...]:
    """The bits per weight that the fields name.

    Raises:
        InvalidOptionError: The list of sizes holds something else than numbers.
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
    return (round(choice.bpw, 2),)
