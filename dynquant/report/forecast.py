"""Size, memory, expected quality and fit of a target before any work, from a model's inventory."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from dynquant.errors import InfeasibleTargetError, InvalidOptionError
from dynquant.model.source import ModelSource
from dynquant.quant.allocate import check_target
from dynquant.quant.formats import DEFAULT_MENU
from dynquant.quant.plan import LayerProfile, ModelInventory
from dynquant.quant.ports import Quantizer, W
from dynquant.quant.recipe import Recipe
from dynquant.report.facts import SizeVariant
from dynquant.report.numbers import percent, significant
from dynquant.report.quality_summary import fitting_macs, gpu_bytes

__all__ = [
    "Forecast",
    "TargetForecast",
    "context_that_fits",
    "expected_quality",
    "fitting_bpw",
    "fitting_tenths",
    "forecast",
    "memory_to_run_bytes",
    "one_layer_inventory",
    "parse_memory",
    "target_forecast",
    "weight_bytes",
]

_WORKING_SHARE = 0.05  # activations and allocator slack while generating, of weights and cache
_STEP_BPW = 0.01
_UNITS = {"": 1 << 30, "G": 1 << 30, "M": 1 << 20, "T": 1 << 40}

_ROW_WEIGHTS = 128
_DTYPE_BITS = 16

_HEADERS_ERROR_BPW = 0.01
"""Accuracy of sizes from headers; the runner measures the exact sizes."""

_NEAR_BPW = 0.3
"""Quality measured within this distance of a target predicts the target's quality."""

# Published figures of many models agree on these; small models lose more.
_RULES_OF_THUMB = (
    (6.0, "hardly distinguishable from the original"),
    (4.5, "close to the original for most uses"),
    (3.5, "noticeably different, a choice for when memory is short"),
    (0.0, "clearly worse, a choice only where nothing larger fits"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Result and cost of quantizing one open model to one target.

    Attributes:
        model: Repo id or folder name.
        model_type: Family.
        num_parameters: Parameters in all.
        source_bytes: Size of the original's weights.
        min_bpw: Smallest feasible target.
        max_bpw: Largest feasible target.
        target_bpw: The target.
        size_bytes: Size of the weights on disk at the target.
        context_tokens: Context that `memory_bytes` is for.
        memory_bytes: Memory to run.
        conversion_memory_bytes: Peak memory of the conversion, estimated.
        conversion_disk_bytes: Disk for source and result together.
        notes: Sentences on parts of the source that the result leaves out, and on layers that no
            format fits.
        num_tower_parameters: Parameters of parts that see or hear, among all.
        tower_bytes: Stored size of these parts, among `size_bytes`.
    """

    model: str
    model_type: str
    num_parameters: int
    source_bytes: int
    min_bpw: float
    max_bpw: float
    target_bpw: float
    size_bytes: int
    context_tokens: int
    memory_bytes: int
    conversion_memory_bytes: int
    conversion_disk_bytes: int
    notes: tuple[str, ...] = ()
    num_tower_parameters: int = 0
    tower_bytes: int = 0

    @property
    def language_bpw(self) -> float:
        """Stored bits per weight that the target leaves to the language model."""
        bits = self.target_bpw * self.num_parameters - 8 * self.tower_bytes
        return bits / (self.num_parameters - self.num_tower_parameters)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetForecast:
    """Result of quantizing a model of the Hub to one target.

    Attributes:
        memory_bytes: Memory to run at `context_tokens`; None if the cache's size is unknown.
        fits: The smallest Mac that runs it, in words; empty if the memory is unknown.
        quality: Expected quality, in words.
        is_measured: Whether `quality` was measured on this model; otherwise a rule of thumb.
    """

    target_bpw: float
    size_bytes: int
    context_tokens: int
    memory_bytes: int | None
    fits: str
    quality: str
    is_measured: bool


def weight_bytes(bpw: float, num_parameters: int) -> int:
    """Size of the weights at `bpw` stored bits per weight."""
    return round(bpw * num_parameters / 8)


def memory_to_run_bytes(weight_bytes: int, cache_bytes: int) -> int:
    """Memory that generation takes: weights, cache and working space."""
    return math.ceil((weight_bytes + cache_bytes) * (1 + _WORKING_SHARE))


def forecast(
    source: ModelSource,
    quantizer: Quantizer[W],
    recipe: Recipe,
    *,
    cache_bytes: int | None = None,
) -> list[Forecast]:
    """Size, memory and disk of each target, from config and headers alone.

    Args:
        source: Where the model came from; its folder may hold headers only.
        quantizer: The open model.
        recipe: The targets.
        cache_bytes: Of the key-value cache; None asks the model for that of 16 bits.

    Raises:
        InfeasibleTargetError: A target lies outside the feasible range.
    """
    inventory = quantizer.inventory(recipe.menu)
    full = quantizer.inventory(DEFAULT_MENU)
    if cache_bytes is None:
        cache_bytes = quantizer.cache_bytes(recipe.context_tokens)
    for target in recipe.targets_bpw:
        check_target(inventory, target)
    source_bytes = weight_bytes(full.source_bpw, full.num_parameters)
    sizes = {t: weight_bytes(t, inventory.num_parameters) for t in recipe.targets_bpw}
    return [
        Forecast(
            model=source.name,
            model_type=inventory.model_type,
            num_parameters=inventory.num_parameters,
            source_bytes=source_bytes,
            min_bpw=inventory.min_bpw,
            max_bpw=inventory.max_bpw,
            target_bpw=target,
            size_bytes=size_bytes,
            context_tokens=recipe.context_tokens,
            memory_bytes=memory_to_run_bytes(size_bytes, cache_bytes),
            conversion_memory_bytes=quantizer.conversion_bytes(
                recipe.calibration_tokens, num_fitting_tokens=recipe.fitting_tokens
            ),
            # Fitted blocks stand beside the folder until they are known to be better.
            conversion_disk_bytes=source_bytes + size_bytes * (1 + recipe.fits_blocks),
            notes=tuple(filter(None, (*quantizer.notes, inventory.why_unquantized.strip()))),
            num_tower_parameters=inventory.num_tower_parameters,
            tower_bytes=inventory.tower_bits // 8,
        )
        for target, size_bytes in sizes.items()
    ]


def target_forecast(
    inventory: ModelInventory,
    target_bpw: float,
    *,
    context_tokens: int,
    cache_bytes_per_token: int | None,
    measured: Sequence[SizeVariant],
) -> TargetForecast:
    """Size, memory and expected quality at `target_bpw`.

    Args:
        inventory: The model's layers, as its headers give them.
        target_bpw: Stored bits per weight.
        context_tokens: For the memory figure.
        cache_bytes_per_token: Of the key-value cache; None if it is unknown.
        measured: Figures of quants that dynquant made of this model before.

    Raises:
        InfeasibleTargetError: No choice of formats meets the target.
    """
    least, most = inventory.min_bpw, inventory.max_bpw
    if not least - _HEADERS_ERROR_BPW <= target_bpw <= most + _HEADERS_ERROR_BPW:
        raise InfeasibleTargetError(
            f"{target_bpw:g} bits per weight cannot be met: this model allows about {least:.2f} to "
            f"{most:.2f}. Choose a value in between.",
            min_bpw=least,
            max_bpw=most,
        )
    size_bytes = weight_bytes(target_bpw, inventory.num_parameters)
    memory_bytes = None
    if cache_bytes_per_token is not None:
        memory_bytes = memory_to_run_bytes(size_bytes, context_tokens * cache_bytes_per_token)
    quality = _measured_near(target_bpw, measured)
    return TargetForecast(
        target_bpw=target_bpw,
        size_bytes=size_bytes,
        context_tokens=context_tokens,
        memory_bytes=memory_bytes,
        fits="" if memory_bytes is None else fitting_macs(memory_bytes),
        quality=quality or expected_quality(target_bpw),
        is_measured=bool(quality),
    )


def expected_quality(target_bpw: float) -> str:
    """The usual quality at this size in words, where nothing was measured."""
    return next(words for bpw, words in _RULES_OF_THUMB if target_bpw >= bpw)


def _measured_near(target_bpw: float, measured: Sequence[SizeVariant]) -> str:
    """Quality of the measured quant nearest to the target; empty without a quant near it."""
    near = [each for each in measured if abs(each.target_bpw - target_bpw) <= _NEAR_BPW]
    if not near:
        return ""
    nearest = min(near, key=lambda each: abs(each.target_bpw - target_bpw))
    return (
        f"mean KL {significant(nearest.mean_kl_nats, 2)} nats and top-1 agreement "
        f"{percent(nearest.top1_agreement)} at {nearest.target_bpw:g} bits per weight"
    )


def fitting_bpw(inventory: ModelInventory, *, memory_bytes: int, cache_bytes: int) -> float:
    """The largest BPW that runs on a Mac with `memory_bytes`, rounded down to 0.01.

    macOS lets the GPU use two thirds to three quarters of the memory.

    Raises:
        InfeasibleTargetError: Even the smallest formats do not fit.
    """
    usable = gpu_bytes(memory_bytes)
    for_weights_bytes = usable / (1 + _WORKING_SHARE) - cache_bytes
    bpw = math.floor(8 * for_weights_bytes / inventory.num_parameters / _STEP_BPW) * _STEP_BPW
    if bpw < inventory.min_bpw:
        raise InfeasibleTargetError(
            f"This model does not fit: {memory_bytes / 2**30:.3g} GB leave room for "
            f"{max(bpw, 0):.2f} bits per weight beside the context, and at least "
            f"{inventory.min_bpw:.2f} are needed. "
            f"Take a smaller context, more memory or a smaller model.{inventory.why_unquantized}",
            min_bpw=inventory.min_bpw,
            max_bpw=inventory.max_bpw,
        )
    return round(min(bpw, inventory.max_bpw), 6)


def context_that_fits(*, memory_bytes: int, weight_bytes: int, cache_bytes_per_token: float) -> int:
    """Tokens of context that a Mac with `memory_bytes` holds beside the weights; 0 without room.

    Rounded down to two significant digits, as the working space is an estimate.
    """
    usable = gpu_bytes(memory_bytes)
    tokens = int((usable / (1 + _WORKING_SHARE) - weight_bytes) / cache_bytes_per_token)
    if tokens <= 0:
        return 0
    step = int(10.0 ** max(0, len(str(tokens)) - 2))
    return tokens // step * step


def fitting_tenths(
    inventory: ModelInventory, *, memory_bytes: int, cache_bytes: int, max_bpw: float
) -> float:
    """As `fitting_bpw`, at most `max_bpw`, rounded down to tenths for readable names.

    Raises:
        InfeasibleTargetError: Even the smallest formats do not fit.
    """
    bpw = fitting_bpw(inventory, memory_bytes=memory_bytes, cache_bytes=cache_bytes)
    tenths = math.floor(10 * min(bpw, max_bpw) + 1e-6) / 10
    # Between the smallest target and the next tenth only the exact value is feasible.
    return tenths if tenths >= inventory.min_bpw else round(min(bpw, max_bpw), 2)


def one_layer_inventory(num_parameters: int) -> ModelInventory:
    """A rough inventory where only the number of parameters is known: one layer, 16 bits."""
    num_parameters = max(num_parameters, _ROW_WEIGHTS)
    num_rows, rest = divmod(num_parameters, _ROW_WEIGHTS)
    layer = LayerProfile(
        path="all", shape=(num_rows, _ROW_WEIGHTS), dtype_bits=_DTYPE_BITS, formats=DEFAULT_MENU
    )
    return ModelInventory(
        model_type="",
        layers=(layer,),
        num_parameters=num_parameters,
        fixed_bits=rest * _DTYPE_BITS,
        dtype="bfloat16",
    )


def parse_memory(text: str) -> int:
    """Bytes of `16GB`, `16G`, `24` (GB) or `512MB`; units are powers of two, as Macs are sold.

    Raises:
        InvalidOptionError: `text` is not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([GMT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise InvalidOptionError(f"'{text}' is not a memory size. Write it like '16GB'.")
    return int(float(match[1]) * _UNITS[match[2].upper()])
