"""The ordered steps of one job: measure → allocate → encode → verify → evaluate → card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dynquant.core.allocate import allocate, allocate_by_threshold, check_target
from dynquant.core.artefacts import (
    cost_table_to_json,
    matched_table,
    plan_to_json,
    report_to_json,
)
from dynquant.core.card import render_card
from dynquant.core.facts import ModelFacts, QuantizedRow
from dynquant.core.formats import DEFAULT_MENU, QuantFormat
from dynquant.core.naming import quantized_name
from dynquant.core.picture import layer_bits_svg
from dynquant.core.plan import CostTable, ModelInventory, QuantPlan, TextFacts
from dynquant.core.planning import Forecast, fitting_bpw, memory_to_run_bytes
from dynquant.core.quality import Quality
from dynquant.core.recipe import Alignment, Recipe
from dynquant.core.uniform import nearest_uniform
from dynquant.errors import InvalidOptionError, SensitivitiesError
from dynquant.ports import ModelSource, OutputStore, Progress, Quantizer, Text, W

__all__ = ["Alignment", "QuantizedModel", "Recipe", "forecast", "measure", "quantize"]

MAX_GAP_BPW = 0.01
"""A plan further below its target than this is explained on the card."""

_UNIFORM = "uniform "
_GAP_NOTE = (
    "It stores {gap:.3f} bits per weight less than was asked for: the menu of formats has no "
    "plan that comes closer without being worse."
)


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A finished folder: its facts, where it is, and what it wrote when it was tried."""

    facts: ModelFacts
    folder: Path
    sample: str


def forecast(
    source: ModelSource,
    quantizer: Quantizer[W],
    recipe: Recipe,
    *,
    fit_memory_bytes: int | None = None,
) -> list[Forecast]:
    """What each target gives and takes, from config and headers alone.

    Args:
        source: Where the model came from; its folder may hold headers only.
        quantizer: The open model.
        recipe: The targets; ignored when `fit_memory_bytes` is given.
        fit_memory_bytes: Take the largest BPW that runs on a Mac with this much memory.

    Raises:
        InfeasibleTargetError: A target lies outside the feasible range.
    """
    inventory = quantizer.inventory(recipe.menu)
    full = quantizer.inventory(DEFAULT_MENU)
    cache_bytes = quantizer.cache_bytes(recipe.context_tokens)
    targets = recipe.targets_bpw
    if fit_memory_bytes is not None:
        targets = (fitting_bpw(inventory, memory_bytes=fit_memory_bytes, cache_bytes=cache_bytes),)
    for target in targets:
        check_target(inventory, target)
    source_bytes = round(full.max_bpw * full.num_parameters / 8)
    sizes = {t: round(t * inventory.num_parameters / 8) for t in targets}
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
            conversion_memory_bytes=quantizer.conversion_bytes(recipe.calibration_tokens),
            conversion_disk_bytes=source_bytes + size_bytes,
        )
        for target, size_bytes in sizes.items()
    ]


def measure(
    quantizer: Quantizer[W], text: Text, recipe: Recipe, *, progress: Progress
) -> CostTable:
    """What every format of every layer costs; one artefact for every target.

    Raises:
        TextError: The calibration text is too short.
        NonFiniteError: NaN or infinity; names the layer.
    """
    windows = quantizer.calibration_windows(text, recipe.calibration_tokens)
    return _measured(quantizer, windows, recipe, progress)


def quantize(
    source: ModelSource,
    quantizer: Quantizer[W],
    recipe: Recipe,
    *,
    calibration: Text,
    evaluation: Text,
    outputs: OutputStore,
    progress: Progress,
    table: CostTable | None = None,
    on_sensitivities: Callable[[Mapping[str, float]], None] = lambda _found: None,
) -> list[QuantizedModel]:
    """Quantize one model to every target of the recipe: a finished folder each, or none.

    Args:
        source: Where the model came from.
        quantizer: The open model.
        recipe: How.
        calibration: Text to measure and encode with.
        evaluation: Held-out text for the figures.
        outputs: Where the folders go.
        progress: Shows the steps.
        table: A cost table of an earlier measurement of the same model.
        on_sensitivities: Gets what the alignment method measured.

    Raises:
        RequestError: The request cannot work; nothing was written.
        StorageFullError: The disk filled up; nothing was kept.
        NeverPublishError: A figure is not finite or the result is not what was planned.
    """
    inventory = quantizer.inventory(recipe.menu)
    for target in recipe.targets_bpw:
        check_target(inventory, target)
    if recipe.alignment is not None:  # refuse what cannot work before measuring
        _thresholds(inventory, recipe, {layer.path: 0.0 for layer in inventory.layers})
    names = {target: quantized_name(source.name, target) for target in recipe.targets_bpw}
    if len(set(names.values())) < len(recipe.targets_bpw):
        raise InvalidOptionError("Two of the targets are the same. Name each BPW once.")
    outputs.check(list(names.values()))
    windows = quantizer.calibration_windows(calibration, recipe.calibration_tokens)
    held_out = quantizer.evaluation_windows(evaluation, recipe.evaluation_tokens)
    held_out.check_disjoint(windows)

    if recipe.alignment is None:
        table = _reusable(table, quantizer, inventory, recipe, windows) or _measured(
            quantizer, windows, recipe, progress
        )
        plans = {t: allocate(table.inventory, target_bpw=t) for t in recipe.targets_bpw}
    else:
        table = None
        plans = _aligned(
            quantizer,
            inventory,
            recipe,
            windows,
            progress=progress,
            on_sensitivities=on_sensitivities,
        )

    with outputs.staged(list(names.values())) as folders:
        staged = {target: folders[name] for target, name in names.items()}
        with progress.track({"encode": quantizer.num_blocks + 1}) as on_step:
            sizes = quantizer.encode(
                {staged[target]: plan for target, plan in plans.items()},
                windows,
                encoder=recipe.encoder,
                importance=table.importance if table else {},
                on_step=on_step,
            )
        with progress.track({"verify": len(plans)}) as on_step:
            samples = {}
            for target, plan in plans.items():
                samples[target] = quantizer.verify(staged[target], plan)
                on_step("verify")
        full = quantizer.inventory(DEFAULT_MENU)
        uniform = {t: nearest_uniform(full, plan.stored_bpw) for t, plan in plans.items()}
        with progress.track({"evaluate": quantizer.num_blocks}) as on_step:
            original, qualities = quantizer.evaluate(
                {names[target]: folder for target, folder in staged.items()},
                {_UNIFORM + fmt.name: plan for fmt, plan in uniform.values()},
                held_out,
                on_step=on_step,
            )
        finished = []
        for target, plan in plans.items():
            fmt, baseline = uniform[target]
            facts = _facts(
                source,
                quantizer,
                recipe,
                plan,
                name=names[target],
                inventory=table.inventory if table else inventory,
                method=table.method if table else "alignment",
                seed=table.seed if table else recipe.seed,
                calibration=windows.facts,
                evaluation=held_out.facts,
                rows=(
                    _row(f"Original ({inventory.dtype})", full, full.max_bpw, original),
                    _row(_label(fmt), full, baseline.stored_bpw, qualities[_UNIFORM + fmt.name]),
                    QuantizedRow(
                        label="This model",
                        stored_bpw=plan.stored_bpw,
                        num_bytes=sizes[staged[target]],
                        quality=qualities[names[target]],
                    ),
                ),
            )
            _write_papers(outputs, staged[target], facts, table)
            finished.append(
                QuantizedModel(
                    facts=facts, folder=outputs.final(names[target]), sample=samples[target]
                )
            )
    return finished


def _measured(quantizer: Quantizer[W], windows: W, recipe: Recipe, progress: Progress) -> CostTable:
    num_blocks = quantizer.num_blocks
    with progress.track({"measure": 2 * num_blocks + 1, "probe": num_blocks}) as on_step:
        return quantizer.measure(
            windows, menu=recipe.menu, encoder=recipe.encoder, seed=recipe.seed, on_step=on_step
        )


def _reusable(
    table: CostTable | None,
    quantizer: Quantizer[W],
    inventory: ModelInventory,
    recipe: Recipe,
    windows: W,
) -> CostTable | None:
    """What this job needs of `table`, if one was given that belongs to the job."""
    if table is None:
        return None
    table = matched_table(table, inventory, quantizer.revision_sha)
    if table.calibration != windows.facts:
        raise SensitivitiesError(
            f"The cost table was measured on another calibration text ('{table.calibration.name}'"
            f", {table.calibration.num_tokens:,} tokens). Pass the same text and number of "
            "tokens, or measure again."
        )
    if table.encoder != recipe.encoder:
        raise SensitivitiesError(
            f"The cost table was measured for the encoder '{table.encoder}'. Pass "
            f"--encoder {table.encoder}, or measure again."
        )
    return table


def _aligned(
    quantizer: Quantizer[W],
    inventory: ModelInventory,
    recipe: Recipe,
    windows: W,
    *,
    progress: Progress,
    on_sensitivities: Callable[[Mapping[str, float]], None],
) -> dict[float, QuantPlan]:
    """Plans of the seed's method."""
    alignment = recipe.alignment
    assert alignment is not None
    sensitivities = alignment.sensitivities
    if sensitivities is None:
        with progress.track({"align": 2 * quantizer.num_blocks + 1}) as on_step:
            sensitivities = quantizer.align(
                windows, low=alignment.low, high=alignment.high, on_step=on_step
            )
    on_sensitivities(sensitivities)
    return _thresholds(inventory, recipe, sensitivities)


def _thresholds(
    inventory: ModelInventory, recipe: Recipe, sensitivities: Mapping[str, float]
) -> dict[float, QuantPlan]:
    alignment = recipe.alignment
    assert alignment is not None
    # A layer that may take one format only has no say, and need not have been measured.
    least = min(sensitivities.values(), default=0.0)
    known = {layer.path: least for layer in inventory.layers if len(layer.formats) == 1}
    known |= sensitivities
    return {
        target: allocate_by_threshold(
            inventory,
            known,
            low=alignment.low,
            high=alignment.high,
            target_bpw=target,
            tolerance=alignment.tolerance,
        )
        for target in recipe.targets_bpw
    }


def _facts(
    source: ModelSource,
    quantizer: Quantizer[W],
    recipe: Recipe,
    plan: QuantPlan,
    *,
    name: str,
    inventory: ModelInventory,
    method: str,
    seed: int,
    calibration: TextFacts,
    evaluation: TextFacts,
    rows: tuple[QuantizedRow, ...],
) -> ModelFacts:
    gap = plan.target_bpw - plan.stored_bpw
    notes: tuple[str, ...] = ()
    if gap >= MAX_GAP_BPW:
        notes = (_GAP_NOTE.format(gap=gap),)
    cache_bytes = quantizer.cache_bytes(recipe.context_tokens)
    return ModelFacts(
        name=name,
        source=source.name,
        source_is_repo=source.is_repo,
        revision_sha=quantizer.revision_sha,
        model_type=inventory.model_type,
        license_fields=source.license_fields,
        layers=inventory.layers,
        plan=plan,
        method=method,
        encoder=recipe.encoder,
        num_parameters=inventory.num_parameters,
        rows=rows,
        memory_bytes=memory_to_run_bytes(rows[-1].num_bytes, cache_bytes),
        context_tokens=recipe.context_tokens,
        calibration=calibration,
        evaluation=evaluation,
        seed=seed,
        command=recipe.command,
        versions=quantizer.versions,
        notes=notes,
    )


def _row(label: str, inventory: ModelInventory, bpw: float, quality: Quality) -> QuantizedRow:
    num_bytes = round(bpw * inventory.num_parameters / 8)
    return QuantizedRow(label=label, stored_bpw=bpw, num_bytes=num_bytes, quality=quality)


def _label(fmt: QuantFormat) -> str:
    return f"Uniform {fmt.bits}-bit, group {fmt.group_size}"


def _write_papers(
    outputs: OutputStore, folder: Path, facts: ModelFacts, table: CostTable | None
) -> None:
    """The card, its pictures and the artefacts."""
    light, dark = "dynquant/bits-light.svg", "dynquant/bits-dark.svg"
    outputs.write_text(folder, light, layer_bits_svg(facts, dark=False))
    outputs.write_text(folder, dark, layer_bits_svg(facts, dark=True))
    if table is not None:
        outputs.write_text(folder, "dynquant/cost_table.json", cost_table_to_json(table))
    outputs.write_text(folder, "dynquant/report.json", report_to_json(facts))
    outputs.write_text(folder, "dynquant/plan.json", plan_to_json(facts))
    card = render_card(facts, picture_light=light, picture_dark=dark)
    outputs.write_text(folder, "README.md", card)
