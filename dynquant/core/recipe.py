"""How to quantize: the request, apart from the model and the texts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from dynquant.core.formats import DEFAULT_MENU, QuantFormat

__all__ = ["RECIPE_VERSION", "Alignment", "Recipe", "command_of"]

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
        dequantize: Take a model that is quantized already.
    """

    targets_bpw: tuple[float, ...]
    menu: tuple[QuantFormat, ...] = DEFAULT_MENU
    encoder: str = "gptq"
    alignment: Alignment | None = None
    calibration_tokens: int = 16_384
    evaluation_tokens: int = 16_384
    context_tokens: int = 4_096
    seed: int = 0
    dequantize: bool = False


_DEFAULT = Recipe(targets_bpw=())


def command_of(
    recipe: Recipe, *, source: str, revision_sha: str, calibration: str, evaluation: str
) -> str:
    """The command that makes the same again, whichever way it was asked for.

    Args:
        recipe: How.
        source: Repo id or folder name of the original.
        revision_sha: Commit of a repo; empty for a folder.
        calibration: Name of the text; no path.
        evaluation: The same of the held-out text.
    """
    words = ["dynquant", "quantize", source]
    words += ["--bpw", ",".join(f"{target:g}" for target in recipe.targets_bpw), "--out", "quants"]
    if revision_sha:
        words += ["--revision", revision_sha]
    if (alignment := recipe.alignment) is not None:
        words += ["--method", "alignment", "--low", alignment.low.name]
        words += ["--high", alignment.high.name, "--tolerance", f"{alignment.tolerance:g}"]
    elif recipe.menu != _DEFAULT.menu:
        words += ["--formats", ",".join(fmt.name for fmt in recipe.menu)]
    words += ["--calibration", calibration, "--eval", evaluation]
    for option, value, default in (
        ("--encoder", recipe.encoder, _DEFAULT.encoder),
        ("--calibration-tokens", recipe.calibration_tokens, _DEFAULT.calibration_tokens),
        ("--eval-tokens", recipe.evaluation_tokens, _DEFAULT.evaluation_tokens),
        ("--context", recipe.context_tokens, _DEFAULT.context_tokens),
        ("--seed", recipe.seed, _DEFAULT.seed),
    ):
        if value != default:
            words += [option, str(value)]
    return shlex.join([*words, *(["--dequantize"] if recipe.dequantize else [])])
