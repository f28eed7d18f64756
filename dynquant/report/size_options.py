"""Sizes to choose from before any work: what each would take, and how fast it would generate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from dynquant.errors import InfeasibleTargetError
from dynquant.model.source import ModelSource
from dynquant.quant.cache_bits import FULL_BITS
from dynquant.quant.chips import bandwidth_model, bandwidths_gb_per_sec
from dynquant.quant.formats import DEFAULT_MENU
from dynquant.quant.kernel_times import KernelTimes
from dynquant.quant.plan import ModelInventory
from dynquant.quant.ports import Quantizer, W
from dynquant.quant.recipe import Recipe
from dynquant.quant.speed import TokenReads, reads_at_bpw
from dynquant.quant.uniform import nearest_uniform
from dynquant.report.forecast import Forecast, expected_quality, fitting_bpw, forecast
from dynquant.report.numbers import significant
from dynquant.report.quality_summary import gpu_bytes, smallest_mac_gib

__all__ = ["Bounds", "SizeOption", "feasible_sizes", "recommended", "size_options"]

_SIZES_BPW = (3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 7.0, 8.0)
_ENOUGH_BPW = 6.0
"""Above it a quant can hardly be told from its original, so more bits are no recommendation."""

_STEP_BPW = 0.01

_ReadsAt = Callable[[float], TokenReads]
"""Bits per weight → the bytes that a token reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How a model is to run.

    Attributes:
        memory_bytes: Memory of the Mac; None for any.
        tokens_per_sec: Least speed of generating behind the whole context; None for any.
        chip: A chip of `quant.chips`, on which speed is estimated; None estimates none.
        kernel_times: Times of this machine's products, which count before `chip`.
        kv_bits: Width of keys and values in the cache.
    """

    memory_bytes: int | None = None
    tokens_per_sec: float | None = None
    chip: str | None = None
    kernel_times: KernelTimes | None = None
    kv_bits: int = FULL_BITS

    @property
    def machine(self) -> str | None:
        """The name of what speed is told for."""
        return self.chip if self.kernel_times is None else self.kernel_times.machine

    @property
    def decide(self) -> bool:
        """Whether they, and no list of targets, decide about the size."""
        return self.memory_bytes is not None or self.tokens_per_sec is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeOption:
    """One size of a model.

    Attributes:
        forecast: Size, memory and disk.
        quality: Expected quality, in words.
        mac_gib: Memory of the smallest Mac that runs it; None if there is none.
        tokens_per_sec: Estimated speed of generating with a short context; None without a chip.
        full_tokens_per_sec: The same behind the forecast's context; None from times of products,
            which know no cache.
    """

    forecast: Forecast
    quality: str
    mac_gib: int | None
    tokens_per_sec: float | None
    full_tokens_per_sec: float | None


def feasible_sizes(quantizer: Quantizer[W], recipe: Recipe) -> tuple[float, ...]:
    """Usual sizes that the model allows, in bits per weight; its largest if it allows none."""
    inventory = quantizer.inventory(recipe.menu)
    found = tuple(bpw for bpw in _SIZES_BPW if inventory.min_bpw <= bpw <= inventory.max_bpw)
    return found or (inventory.max_bpw,)


def size_options(
    source: ModelSource, quantizer: Quantizer[W], recipe: Recipe, bounds: Bounds
) -> list[SizeOption]:
    """The options for the recipe's targets, or the largest size within `bounds`.

    Args:
        source: Where the model came from; its folder may hold headers only.
        quantizer: The open model.
        recipe: The targets; ignored where `bounds` decide.
        bounds: How the model is to run.

    Raises:
        InfeasibleTargetError: A target lies outside the feasible range, or no size is within the
            bounds.
        InvalidOptionError: The model's cache takes no fewer bits.
    """
    cache_bytes = quantizer.cache_bytes(recipe.context_tokens, kv_bits=bounds.kv_bits)
    reads_at = _reads_at(quantizer, recipe, bounds, cache_bytes=cache_bytes)
    if bounds.decide:
        inventory = quantizer.inventory(recipe.menu)
        recipe = replace(recipe, targets_bpw=(_bpw_within(inventory, recipe, bounds, reads_at),))
    forecasts = forecast(source, quantizer, recipe, cache_bytes=cache_bytes)
    if bounds.kernel_times is None:
        speeds = [_estimated(bounds, reads_at(each.target_bpw)) for each in forecasts]
    else:
        speeds = _timed(bounds.kernel_times, quantizer, forecasts)
    return [
        SizeOption(
            forecast=each,
            quality=expected_quality(each.target_bpw),
            mac_gib=smallest_mac_gib(each.memory_bytes),
            tokens_per_sec=short,
            full_tokens_per_sec=full,
        )
        for each, (short, full) in zip(forecasts, speeds, strict=True)
    ]


def recommended(options: Sequence[SizeOption], *, memory_gib: float) -> SizeOption | None:
    """The best of `options` for a Mac with this much memory; None if it can run none of them.

    That is the largest that fits, up to a size whose text can hardly be told from the original's.
    """
    usable_bytes = gpu_bytes(memory_gib * 2**30)
    fitting = [each for each in options if each.forecast.memory_bytes <= usable_bytes]
    enough = [each for each in fitting if each.forecast.target_bpw <= _ENOUGH_BPW]
    return max(enough or fitting[:1], key=lambda each: each.forecast.target_bpw, default=None)


def _reads_at(
    quantizer: Quantizer[W], recipe: Recipe, bounds: Bounds, *, cache_bytes: int
) -> _ReadsAt:
    """The bytes that a token reads at a size; the model's code is asked once for all sizes."""
    return partial(
        reads_at_bpw,
        quantizer.inventory(recipe.menu),
        shares=quantizer.read_shares() if bounds.chip is not None else {},
        cache_bytes=cache_bytes,
        num_blocks=quantizer.num_blocks,
    )


def _bpw_within(
    inventory: ModelInventory, recipe: Recipe, bounds: Bounds, reads_at: _ReadsAt
) -> float:
    """The largest size within memory and speed, rounded down to 0.01 bits per weight."""
    found = inventory.max_bpw
    if bounds.memory_bytes is not None:
        cache_bytes = reads_at(found).cache_bytes
        found = fitting_bpw(inventory, memory_bytes=bounds.memory_bytes, cache_bytes=cache_bytes)
    if bounds.tokens_per_sec is not None:
        found = min(found, _bpw_at_speed(inventory, recipe, bounds, reads_at))
    return found


def _bpw_at_speed(
    inventory: ModelInventory, recipe: Recipe, bounds: Bounds, reads_at: _ReadsAt
) -> float:
    """The largest size that is fast enough; the bytes that a token reads are linear in it."""
    tokens_per_sec = bounds.tokens_per_sec
    assert bounds.chip is not None
    assert tokens_per_sec is not None
    model, bandwidth = bandwidth_model(), bandwidths_gb_per_sec()[bounds.chip]
    least, most = inventory.min_bpw, inventory.max_bpw
    at_least, at_most = reads_at(least), reads_at(most)
    allowed = model.weight_bytes_at(tokens_per_sec, at_least, bandwidth_gb_per_sec=bandwidth)
    if allowed < at_least.weight_bytes:
        fastest = model.tokens_per_sec(at_least, bandwidth_gb_per_sec=bandwidth)
        raise InfeasibleTargetError(
            f"No size of this model generates {tokens_per_sec:g} tokens a second on {bounds.chip} "
            f"behind {recipe.context_tokens:,} tokens: its smallest, {least:.2f} bits per weight, "
            f"is estimated at {significant(fastest, 2)}. Take a faster chip, a shorter --context, "
            "fewer --kv-bits or a smaller model.",
            min_bpw=least,
            max_bpw=most,
        )
    growth = at_most.weight_bytes - at_least.weight_bytes
    share = min(1.0, (allowed - at_least.weight_bytes) / growth) if growth else 1.0
    bpw = math.floor((least + share * (most - least)) / _STEP_BPW + 1e-9) * _STEP_BPW
    return max(least, round(bpw, 6))


def _estimated(bounds: Bounds, reads: TokenReads) -> tuple[float | None, float | None]:
    """With a short context, and behind the whole one."""
    if bounds.chip is None:
        return None, None
    model, bandwidth = bandwidth_model(), bandwidths_gb_per_sec()[bounds.chip]
    return (
        model.tokens_per_sec(replace(reads, cache_bytes=0), bandwidth_gb_per_sec=bandwidth),
        model.tokens_per_sec(reads, bandwidth_gb_per_sec=bandwidth),
    )


def _timed(
    times: KernelTimes, quantizer: Quantizer[W], forecasts: Sequence[Forecast]
) -> list[tuple[float | None, float | None]]:
    """Predicted from the uniform quant of the nearest size, since there is no plan yet."""
    full, shares = quantizer.inventory(DEFAULT_MENU), quantizer.read_shares()
    num_blocks = quantizer.num_blocks
    plans = (nearest_uniform(full, each.target_bpw)[1] for each in forecasts)
    return [
        (times.tokens_per_sec(full.layers, plan.formats, shares, num_blocks=num_blocks), None)
        for plan in plans
    ]
