"""How to quantize: the request, apart from the model and the texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dynquant.core.formats import DEFAULT_MENU, QuantFormat

__all__ = ["RECIPE_VERSION", "Alignment", "Recipe"]

RECIPE_VERSION = 1
"""Goes up with every change after which the same recipe makes another model."""


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The seed's method: two formats and a threshold on sensitivities.

    Attributes:
        low: Format below the threshold.
        high: Format above it.
        tolerance: Share of the sensitivities' range within which layers count as equal.
        sensitivities: Path → value from a file; measured when None.
    """

    low: QuantFormat
    high: QuantFormat
    tolerance: float = 0.0
    sensitivities: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to quantize.

    Attributes:
        targets_bpw: Stored bits per weight, one folder each.
        menu: Formats to choose from.
        encoder: `gptq`, `wls` or `minmax`.
        alignment: The seed's method instead of the Fisher one.
        calibration_tokens: About how many tokens to calibrate on.
        evaluation_tokens: About how many to evaluate on.
        context_tokens: Context that the memory figure is for.
        seed: Seed of the sampled labels.
        command: The command that makes this again, for the card.
    """

    targets_bpw: tuple[float, ...]
    menu: tuple[QuantFormat, ...] = DEFAULT_MENU
    encoder: str = "gptq"
    alignment: Alignment | None = None
    calibration_tokens: int = 16_384
    evaluation_tokens: int = 16_384
    context_tokens: int = 4_096
    seed: int = 0
    command: str = ""
