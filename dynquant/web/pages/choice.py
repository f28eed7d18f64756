"""What the fields of the Convert page say together."""

from __future__ import annotations

from typing import NamedTuple

from dynquant.errors import InvalidOptionError
from dynquant.quant.formats import DEFAULT_MENU, UNQUANTIZED
from dynquant.web.model_lookup import ModelPreview
from dynquant.web.outlook import largest_that_fits

__all__ = ["AS_IT_IS", "BY_BPW", "BY_MEMORY", "Choice", "Wishes", "targets_of"]

BY_BPW, BY_MEMORY = "Bits per weight", "Memory of my Mac"
AS_IT_IS = "as it is"


class Choice(NamedTuple):
    """The fields that answers depend on, in the order of the page."""

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
            InvalidOptionError: None is left.
        """
        names = [
            f"{bits}g{group}" for bits in self.bits for group in self.groups if bits != AS_IT_IS
        ]
        names += [UNQUANTIZED.name] * (AS_IT_IS in self.bits) + self.floats
        if not names:
            raise InvalidOptionError("Leave at least one choice of bits, and one group size.")
        is_default = set(names) == {fmt.name for fmt in DEFAULT_MENU}
        return "" if is_default else ",".join(names)


class Wishes(NamedTuple):
    """The other fields, in the order of the page."""

    calibration: str
    destination: str
    private: bool
    notify_url: str


def targets_of(prospect: ModelPreview, choice: Choice) -> tuple[float, ...]:
    """Bits per weight that are asked for.

    Raises:
        InvalidOptionError: Several sizes that are no numbers.
        InfeasibleTargetError: Nothing of the model fits the memory.
    """
    several = [part for part in choice.several.split(",") if part.strip()]
    if several:
        try:
            return tuple(dict.fromkeys(map(float, several)))
        except ValueError as error:
            raise InvalidOptionError(
                "Several sizes are numbers with commas between them, such as 3.5, 4.5, 6."
            ) from error
    if choice.way == BY_MEMORY:
        found = largest_that_fits(
            prospect, memory_gib=choice.memory_gib, context_tokens=choice.context_tokens
        )
        return (found,)
    return (round(choice.bpw, 2),)
