"""The command `plan`: size, memory, speed and time of a model's quants, before any work."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Annotated, Any

import psutil
import typer

from dynquant.cli import console
from dynquant.cli.kernels import kernel_times_here
from dynquant.cli.options import (
    DEFAULT_RECIPE,
    Context,
    Dequantize,
    Dtype,
    Formats,
    Json,
    Model,
    Revision,
    TextOnly,
    TowerChoice,
    menu_in,
    targets_in,
    tower_of,
)
from dynquant.errors import InvalidOptionError
from dynquant.quant.cache_bits import CACHE_BITS, FULL_BITS
from dynquant.quant.chips import chip_named
from dynquant.quant.recipe import Recipe
from dynquant.report.forecast import parse_memory
from dynquant.report.size_options import (
    Bounds,
    SizeOption,
    feasible_sizes,
    recommended,
    size_options,
)
from dynquant.settings import Settings

__all__ = ["plan"]


def plan(
    model: Model,
    bpw: Annotated[
        str | None,
        typer.Option(metavar="BPW[,BPW...]", help="Stored bits per weight; several with commas."),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="MEMORY", help="Memory of your Mac, such as 16GB, instead of --bpw."),
    ] = None,
    min_tokens_per_second: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER", help="Least speed of generating behind --context, instead of --bpw."
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="CHIP",
            help="Chip to estimate the speed on, such as 'M4 Pro'; default: this Mac's.",
        ),
    ] = None,
    formats: Formats = None,
    context: Context = DEFAULT_RECIPE.context_tokens,
    kv_bits: Annotated[
        int,
        typer.Option(metavar="BITS", help="Bits of keys and values in the cache: 16, 8 or 4."),
    ] = FULL_BITS,
    revision: Revision = None,
    dequantize: Dequantize = False,
    dtype: Dtype = DEFAULT_RECIPE.dtype,
    tower: TowerChoice = DEFAULT_RECIPE.tower,
    text_only: TextOnly = False,
    as_json: Json = False,
) -> None:
    """Forecast size, memory, speed and time from the headers.

    Without --bpw, --fit and --min-tokens-per-second: the usual sizes, and which of them suits this
    machine.
    """
    from dynquant.cli.speed import expected_secs
    from dynquant.cli.wiring import chip_here, open_model  # MLX takes a second to import
    from dynquant.quant.mlx.generation_speed import machine_name

    home, is_here = Settings.from_environment(os.environ).home, on is None
    bounds = Bounds(
        memory_bytes=None if fit is None else parse_memory(fit),
        tokens_per_sec=min_tokens_per_second,
        chip=chip_here() if on is None else chip_named(on),
        kernel_times=kernel_times_here(home, machine_name()) if is_here else None,
        kv_bits=kv_bits,
    )
    _require_sound(bounds, is_sized=bpw is not None)
    recipe = Recipe(
        targets_bpw=() if bpw is None else targets_in(bpw),
        menu=menu_in(formats),
        context_tokens=context,
        dtype=dtype,
        tower=tower_of(tower, text_only=text_only),
    )
    with open_model(
        model,
        revision=revision,
        headers_only=True,
        dequantize=dequantize,
        dtype=dtype,
        tower=recipe.tower,
    ) as (source, quantizer):
        _require_within(context, quantizer.context_limit)
        is_choice = bpw is None and not bounds.decide
        if is_choice:
            recipe = replace(recipe, targets_bpw=feasible_sizes(quantizer, recipe))
        found = size_options(source, quantizer, recipe, bounds)
        secs = expected_secs(home, num_parameters=found[0].forecast.num_parameters, recipe=recipe)
    memory_gib = psutil.virtual_memory().total / 2**30
    best = recommended(found, memory_gib=memory_gib) if is_choice else None
    if as_json:
        console.print_json(
            {
                "plans": [_option(each) for each in found],
                "chip": bounds.machine,
                "recommended_bpw": None if best is None else best.forecast.target_bpw,
                "conversion_secs": secs,
                "license": dict(source.license_fields),
                "gated": source.gated,
                "revision_sha": source.revision_sha,
            }
        )
    else:
        console.print_size_options(found, bounds)
        if is_choice:
            console.print_recommended(best, memory_gib=memory_gib)
        console.print_terms_and_time(source, secs)


def _require_sound(bounds: Bounds, *, is_sized: bool) -> None:
    """Refuse options that contradict each other, before the model is opened."""
    if is_sized and bounds.decide:
        raise InvalidOptionError(
            "--bpw asks for a size, and --fit and --min-tokens-per-second look for one. Pass "
            "either kind, or neither for the usual sizes."
        )
    if bounds.kv_bits not in {FULL_BITS, *CACHE_BITS}:
        raise InvalidOptionError(f"--kv-bits must be 16, 8 or 4, not {bounds.kv_bits}.")
    speed = bounds.tokens_per_sec
    if speed is not None and not 0 < speed < float("inf"):
        raise InvalidOptionError("--min-tokens-per-second must be a positive number.")
    if speed is not None and bounds.chip is None:
        raise InvalidOptionError(
            "This machine has no chip of Apple's, so its speed cannot be estimated. Name the chip "
            "of your Mac, such as --on 'M4 Pro'."
        )


def _require_within(context: int, limit: int | None) -> None:
    """Refuse a context that was asked for and is longer than the model's; the default may be."""
    if limit is not None and context > limit and context != DEFAULT_RECIPE.context_tokens:
        raise InvalidOptionError(
            f"--context {context:,} is longer than this model's context of {limit:,} tokens. Pass "
            "a shorter one."
        )


def _option(option: SizeOption) -> dict[str, Any]:
    fields = asdict(option)
    return {**fields.pop("forecast"), **fields}
