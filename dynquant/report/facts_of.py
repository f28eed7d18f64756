"""The facts of finished models, put together from the results of a conversion's steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynquant.model.source import ModelSource
from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import ModelInventory, QuantPlan, TextFacts
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import Recipe, command_of
from dynquant.quant.speed import reads_of
from dynquant.quant.uniform import nearest_uniform
from dynquant.quant.verified import Verified
from dynquant.report.facts import ModelFacts, QuantizedRow, SizeVariant
from dynquant.report.forecast import memory_to_run_bytes, weight_bytes
from dynquant.texts.images import ImageFacts

__all__ = ["ORIGINAL", "facts_of", "notes_on", "uniform_name"]

ORIGINAL = "original"
"""The key of the original among the figures."""

MAX_GAP_BPW = 0.01
"""A plan that is further below its target gets a note on the card."""

_GAP_NOTE = (
    "It stores {gap:.3f} bits per weight less than was asked for: the menu of formats has no "
    "plan that comes closer without being worse."
)


def facts_of(
    plans: Mapping[str, QuantPlan],
    figures: Mapping[str, Quality],
    verified: Mapping[str, Verified],
    *,
    source: ModelSource,
    recipe: Recipe,
    inventory: ModelInventory,
    full: ModelInventory,
    method: str,
    calibration: TextFacts,
    evaluation: TextFacts,
    calibration_images: ImageFacts | None = None,
    evaluation_images: ImageFacts | None = None,
    cache_bytes: int,
    read_shares: Mapping[str, float],
    num_blocks: int,
    versions: Mapping[str, str],
    notes: Sequence[str],
) -> list[ModelFacts]:
    """The facts for the cards of finished models, one for each plan.

    Args:
        plans: Name of a model → its plan.
        figures: Quality by name: of the original (`ORIGINAL`), of the models, and of uniform
            quants (`uniform_name`).
        verified: Name of a model → the result of running it.
        source: The original, with the fingerprint of its weights where it is a local folder.
        recipe: Their recipe.
        inventory: The layers, with the formats of the recipe's menu.
        full: The layers with all formats.
        method: The method of measuring costs: `fisher`, `block_output` or `alignment`.
        calibration: The calibration text.
        evaluation: The held-out text.
        calibration_images: The images beside the calibration text.
        evaluation_images: The images that questions were asked about.
        cache_bytes: Of the key-value cache at the recipe's context.
        read_shares: Share of each layer's weights that generating a token reads.
        num_blocks: Blocks of the model.
        versions: Of the tools that the result depends on.
        notes: Sentences on parts of the source that the models lack.
    """
    common = {
        **_source_facts(source),
        **_recipe_facts(recipe),
        "command": command_of(
            recipe,
            source=source.name,
            revision_sha=source.revision_sha if source.is_repo else "",
            calibration=calibration.name,
            evaluation=evaluation.name,
            calibration_images="" if calibration_images is None else calibration_images.name,
            evaluation_images="" if evaluation_images is None else evaluation_images.name,
        ),
        **_model_facts(inventory),
        "method": method,
        "calibration": calibration,
        "evaluation": evaluation,
        "calibration_images": calibration_images,
        "evaluation_images": evaluation_images,
        "versions": versions,
        "variants": _size_variants(plans, figures, inventory.num_parameters),
    }
    return [
        ModelFacts(
            name=name,
            plan=plan,
            rows=_quality_table(name, plan, figures, full),
            memory_bytes=memory_to_run_bytes(
                weight_bytes(plan.stored_bpw, inventory.num_parameters), cache_bytes
            ),
            runtimes=verified[name].runtimes,
            reads=reads_of(
                inventory,
                plan.formats,
                read_shares,
                cache_bytes=cache_bytes,
                num_blocks=num_blocks,
            ),
            speed=verified[name].speed,
            cache_losses=verified[name].cache_losses,
            notes=(*notes, *notes_on(plan)),
            **common,
        )
        for name, plan in plans.items()
    ]


def _model_facts(inventory: ModelInventory) -> dict[str, Any]:
    return {
        "model_type": inventory.model_type,
        "layers": inventory.layers,
        "num_parameters": inventory.num_parameters,
        "num_tower_parameters": inventory.num_tower_parameters,
        "tower_bytes": inventory.tower_bits // 8,
    }


def _source_facts(source: ModelSource) -> dict[str, Any]:
    return {
        "source": source.name,
        "source_is_repo": source.is_repo,
        "source_id": source.hub_id,
        "source_is_private": source.is_private,
        "revision_sha": source.revision_sha,
        "license_fields": source.license_fields,
        "gated": source.gated,
        "gated_fields": source.gated_fields,
    }


def _recipe_facts(recipe: Recipe) -> dict[str, Any]:
    names = ("menu", "encoder", "effort", "distil", "time_budget_mins", "seed", "dtype", "tower")
    counts = ("calibration_tokens", "evaluation_tokens", "context_tokens")
    return {name: getattr(recipe, name) for name in (*names, *counts)}


def _size_variants(
    plans: Mapping[str, QuantPlan], figures: Mapping[str, Quality], num_parameters: int
) -> tuple[SizeVariant, ...]:
    """One for each plan, ascending by size."""
    variants = (
        SizeVariant(
            name=name,
            target_bpw=plan.target_bpw,
            stored_bpw=plan.stored_bpw,
            num_bytes=weight_bytes(plan.stored_bpw, num_parameters),
            mean_kl_nats=figures[name].mean_kl_nats,
            mean_kl_se_nats=figures[name].mean_kl_se_nats,
            top1_agreement=figures[name].top1_agreement,
        )
        for name, plan in plans.items()
    )
    return tuple(sorted(variants, key=lambda each: each.stored_bpw))


def _quality_table(
    name: str, plan: QuantPlan, figures: Mapping[str, Quality], full: ModelInventory
) -> tuple[QuantizedRow, ...]:
    """The original, the uniform quant of the nearest size, and this model."""
    fmt, uniform = nearest_uniform(full, plan.stored_bpw)
    rows = (
        (f"Original ({full.dtype})", full.source_bpw, ORIGINAL),
        (f"Uniform {fmt.bits}-bit, group {fmt.group_size}", uniform.stored_bpw, uniform_name(fmt)),
        ("This model", plan.stored_bpw, name),
    )
    return tuple(
        QuantizedRow(
            label=label,
            stored_bpw=bpw,
            num_bytes=weight_bytes(bpw, full.num_parameters),
            quality=figures[key],
        )
        for label, bpw, key in rows
    )


def notes_on(plan: QuantPlan) -> tuple[str, ...]:
    """Notes for users of a model of this plan."""
    gap = plan.target_bpw - plan.stored_bpw
    return (_GAP_NOTE.format(gap=gap),) if gap >= MAX_GAP_BPW else ()


def uniform_name(fmt: QuantFormat) -> str:
    """The key of the uniform quant in `fmt` among the figures."""
    return f"uniform {fmt.name}"
