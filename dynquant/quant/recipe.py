"""How to quantize: the request, apart from the model and the texts."""

from __future__ import annotations

import hashlib
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace

from dynquant.errors import InvalidOptionError
from dynquant.model.naming import quantized_name
from dynquant.quant.formats import DEFAULT_MENU, QuantFormat

__all__ = [
    "EFFORTS",
    "ENCODERS",
    "MAX_BPW",
    "MAX_CONTEXT_TOKENS",
    "MAX_MINUTES",
    "MAX_SEED",
    "MAX_TARGETS",
    "MAX_TOKENS",
    "RECIPE_VERSION",
    "TOWERS",
    "Alignment",
    "Effort",
    "Recipe",
    "command_of",
    "variant_of",
]

RECIPE_VERSION = 9
"""Increases with every change after which the same recipe gives other weights."""

MAX_TOKENS = 10**8
"""To calibrate or to evaluate on; figures stop changing at a hundredth of it."""
MAX_CONTEXT_TOKENS = 10**9  # MLX counts the elements of a side in 32 bits
MAX_SEED = 2**32 - 1
MAX_MINUTES = 10.0**6
"""Two years."""

_VARIANT_DIGITS = 12
"""48 bits: of a million recipes of one model no two share a name, but for 2 in 1,000 times."""

ENCODERS = ("gptq", "wls", "minmax")
TOWERS = ("keep", "8", "none")
"""Parts that see or hear: in their own dtype, at 8 bits, or left out."""
"""GPTQ with coordinate descent, weighted least squares, and `mx.quantize`."""

DTYPES = ("auto", "float32")

MAX_TARGETS = 32
MAX_BPW = 32.0
"""Bits per weight of a model in float32."""

_COUNTS = {
    "calibration_tokens": ("The number of tokens to calibrate on", 1, MAX_TOKENS),
    "evaluation_tokens": ("The number of tokens to evaluate on", 1, MAX_TOKENS),
    "context_tokens": ("The context", 1, MAX_CONTEXT_TOKENS),
    "seed": ("The seed", 0, MAX_SEED),
}


@dataclass(frozen=True, kw_only=True)
class Alignment:
    """The method of `mlx_lm.quant.dynamic_quant`: two formats and a threshold on sensitivities.

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

    def __post_init__(self) -> None:
        if not 0.0 <= self.tolerance <= 1.0:
            raise InvalidOptionError(
                f"The tolerance must lie between 0 and 1, not {self.tolerance}."
            )


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The amount of work on a model, in counts, so that it is the same on every machine.

    Attributes:
        name: The value of `--effort`.
        probes: Whether whole-model measurements correct the costs.
        num_sweeps: How often the encoder goes over a layer again.
        fitting_ratio: Weights are fitted on so many times the tokens of the calibration.
        num_reconstruction_epochs: How often each block sees these tokens while its layers are
            fitted together.
        num_polish_rounds: How often plans near the chosen one are tried on the whole model.
        num_distil_steps: Most steps of distillation into scales, biases and norms.
    """

    name: str
    probes: bool
    num_sweeps: int
    fitting_ratio: int = 0
    num_reconstruction_epochs: int = 0
    num_polish_rounds: int = 0
    num_distil_steps: int = 0


EFFORTS: Mapping[str, Effort] = {
    effort.name: effort
    for effort in (
        Effort(name="fast", probes=False, num_sweeps=0),
        Effort(
            name="normal", probes=True, num_sweeps=2, fitting_ratio=4, num_reconstruction_epochs=2
        ),
        Effort(
            name="max",
            probes=True,
            num_sweeps=6,
            fitting_ratio=24,
            num_reconstruction_epochs=4,
            num_polish_rounds=4,
            num_distil_steps=384,
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to quantize.

    Attributes:
        targets_bpw: Stored bits per weight, one folder each.
        menu: Formats to choose from.
        encoder: `gptq`, `wls` or `minmax`.
        effort: A key of `EFFORTS`.
        distil: Distil at every effort.
        time_budget_mins: No further round of polishing or distilling begins after so long; the
            result then depends on the machine.
        alignment: Use the alignment method instead of the Fisher method.
        calibration_tokens: About how many tokens to calibrate on.
        evaluation_tokens: About how many to evaluate on.
        context_tokens: Context that the memory figure is for.
        seed: Seed of the sampled labels.
        dequantize: Accept somebody's quant of a model.
        dtype: `auto`: scales and what is not quantized of a float32 source are stored in bfloat16;
            `float32`: in float32.
        tower: How parts that see or hear are stored, one of `TOWERS`.

    Raises:
        InvalidOptionError: A value is out of range for every model.
    """

    targets_bpw: tuple[float, ...]
    menu: tuple[QuantFormat, ...] = DEFAULT_MENU
    encoder: str = "gptq"
    effort: str = "normal"
    distil: bool = False
    time_budget_mins: float | None = None
    alignment: Alignment | None = None
    calibration_tokens: int = 16_384
    evaluation_tokens: int = 16_384
    context_tokens: int = 4_096
    seed: int = 0
    dequantize: bool = False
    dtype: str = "auto"
    tower: str = "keep"

    def __post_init__(self) -> None:
        if self.encoder not in ENCODERS:
            raise InvalidOptionError(
                f"There is no encoder '{str(self.encoder)[:60]}'. Choose one of "
                f"{', '.join(ENCODERS)}."
            )
        if self.dtype not in DTYPES:
            raise InvalidOptionError(
                f"There is no dtype '{str(self.dtype)[:60]}' to choose. Choose one of "
                f"{', '.join(DTYPES)}."
            )
        if self.effort not in EFFORTS:
            raise InvalidOptionError(
                f"There is no effort '{str(self.effort)[:60]}'. Choose one of {', '.join(EFFORTS)}."
            )
        if self.tower not in TOWERS:
            raise InvalidOptionError(
                f"There is no way '{str(self.tower)[:60]}' to store a tower. Choose one of "
                f"{', '.join(TOWERS)}."
            )
        budget = self.time_budget_mins
        if budget is not None and not (_is_number(budget) and 0 <= budget <= MAX_MINUTES):
            raise InvalidOptionError(
                f"A time budget is a number of minutes, from 0 to {MAX_MINUTES:,.0f}."
            )
        for name, (what, least, most) in _COUNTS.items():
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise InvalidOptionError(
                    f"{what} must be a whole number from {least:,} to {most:,}."
                )
        _check_targets(self.targets_bpw)

    @property
    def work(self) -> Effort:
        """The work of `effort`, with the distillation of `distil`."""
        effort, most = EFFORTS[self.effort], EFFORTS["max"]
        if not self.distil:
            return effort
        return replace(
            effort, num_distil_steps=most.num_distil_steps, fitting_ratio=most.fitting_ratio
        )

    @property
    def fits_blocks(self) -> bool:
        """Whether whole blocks are fitted; other encoders are asked for to see one layer alone."""
        return self.encoder == "gptq" and self.work.num_reconstruction_epochs > 0

    @property
    def fitting_tokens(self) -> int:
        """About how many tokens to fit weights on, those of the calibration among them."""
        is_fitted = self.fits_blocks or self.work.num_distil_steps
        return self.work.fitting_ratio * self.calibration_tokens if is_fitted else 0


def _check_targets(targets_bpw: tuple[float, ...]) -> None:
    """Refuse targets that are out of range for every model."""
    for target in targets_bpw:
        if not (_is_number(target) and 0 < target <= MAX_BPW):
            raise InvalidOptionError(
                f"A target must be a positive number of bits per weight, at most {MAX_BPW:g}, such "
                f"as 4.5; this one is {str(target)[:40]}."
            )
    if len(targets_bpw) > MAX_TARGETS:
        raise InvalidOptionError(f"There may be at most {MAX_TARGETS} targets at once.")
    if len({quantized_name("model", target) for target in targets_bpw}) < len(targets_bpw):
        raise InvalidOptionError("Two of the targets are the same. Name each BPW once.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


_DEFAULT = Recipe(targets_bpw=())


def command_of(
    recipe: Recipe,
    *,
    source: str,
    revision_sha: str,
    calibration: str,
    evaluation: str,
    calibration_images: str = "",
    evaluation_images: str = "",
) -> str:
    """The command that repeats a conversion, which a page or a rule may have requested.

    Args:
        recipe: How to quantize.
        source: Repo id or folder name of the original.
        revision_sha: Commit of a repo; empty for a folder.
        calibration: Name of the text; no path.
        evaluation: Name of the held-out text; no path.
        calibration_images: Name of the images to calibrate on; no path, empty without.
        evaluation_images: Name of the images to evaluate on; no path, empty without.
    """
    words = ["dynquant", "quantize", source]
    words += ["--bpw", ",".join(f"{target:g}" for target in recipe.targets_bpw), "--out", "quants"]
    if revision_sha:
        words += ["--revision", revision_sha]
    if (alignment := recipe.alignment) is not None:
        words += ["--method", "alignment", "--low", alignment.low.name]
        words += ["--high", alignment.high.name, "--tolerance", f"{alignment.tolerance:g}"]
    elif set(recipe.menu) != set(_DEFAULT.menu):
        words += ["--formats", ",".join(fmt.name for fmt in sorted(set(recipe.menu)))]
    words += ["--calibration", calibration, "--eval", evaluation]
    for option, value, default in (
        ("--calibration-images", calibration_images, ""),
        ("--eval-images", evaluation_images, ""),
        ("--encoder", recipe.encoder, _DEFAULT.encoder),
        ("--effort", recipe.effort, _DEFAULT.effort),
        ("--time-budget", recipe.time_budget_mins, _DEFAULT.time_budget_mins),
        ("--calibration-tokens", recipe.calibration_tokens, _DEFAULT.calibration_tokens),
        ("--eval-tokens", recipe.evaluation_tokens, _DEFAULT.evaluation_tokens),
        ("--context", recipe.context_tokens, _DEFAULT.context_tokens),
        ("--seed", recipe.seed, _DEFAULT.seed),
        ("--dtype", recipe.dtype, _DEFAULT.dtype),
        ("--tower", recipe.tower, _DEFAULT.tower),
    ):
        if value != default:
            words += [option, str(value)]
    flags = {"--distil": recipe.distil, "--dequantize": recipe.dequantize}
    return shlex.join([*words, *(flag for flag, is_set in flags.items() if is_set)])


def variant_of(
    recipe: Recipe,
    *,
    texts: Mapping[str, str],
    default_texts: Mapping[str, str],
    revision_sha: str = "",
) -> str:
    """A name for a recipe that differs from the default one, a hash of its options; else empty.

    Args:
        recipe: How to quantize; its targets do not count.
        texts: Names of the texts: `calibration` and `evaluation`.
        default_texts: Those of the default recipe.
        revision_sha: Commit of the source where it is not the latest; else empty.
    """
    asked, default = (
        command_of(replace(each, targets_bpw=()), source="", revision_sha=sha, **names)
        for each, sha, names in ((recipe, revision_sha, texts), (_DEFAULT, "", default_texts))
    )
    if asked == default:
        return ""
    return f"custom-{hashlib.sha256(asked.encode()).hexdigest()[:_VARIANT_DIGITS]}"
