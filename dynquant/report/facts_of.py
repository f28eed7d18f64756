"""The facts of finished models, put together from what the steps of a conversion found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dynquant.model.source import ModelSource
from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import ModelInventory, QuantPlan, TextFacts
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import Recipe, command_of
from dynquant.quant.uniform import nearest_uniform
from dynquant.report.facts import ModelFacts, QuantizedRow, SizeVariant
from dynquant.report.forecast import memory_to_run_bytes, weight_bytes

__all__ = ["ORIGINAL", "facts_of", "notes_on", "uniform_name"]

ORIGINAL = "original"
"""Under this name the figures of the original stand among those of its quants."""

MAX_GAP_BPW = 0.01
"""A plan further below its target than this is explained on the card."""

_GAP_NOTE = (
    "It stores {gap:.3f} bits per weight less than was asked for: the menu of formats has no "
    "plan that comes closer without being worse."
)


def facts_of(
    plans: Mapping[str, QuantPlan],
    figures: Mapping[str, Quality],
    *,
    source: ModelSource,
    recipe: Recipe,
    inventory: ModelInventory,
    full: ModelInventory,
    method: str,
    calibration: TextFacts,
    evaluation: TextFacts,
    cache_bytes: int,
    versions: Mapping[str, str],
    notes: Sequence[str],
) -> list[ModelFacts]:
    """Everything that the cards of finished models say, one for each plan.

    Args:
        plans: Name of a model → its plan.
        figures: Quality by name: of the original (`ORIGINAL`), of the models, and of uniform
            quants (`uniform_name`).
        source: The original, with the fingerprint of its weights where it is a local folder.
        recipe: How they were made.
        inventory: The layers, with the formats of the recipe's menu.
        full: The layers with all formats.
        method: How the costs were measured: `fisher`, `block_output` or `alignment`.
        calibration: The text that was calibrated on.
        evaluation: The held-out text.
        cache_bytes: Of the key-value cache at the recipe's context.
        versions: Of the tools that the result depends on.
        notes: Sentences on what of the source the models do not hold.
    """

    def num_bytes(bpw: float) -> int:
        return weight_bytes(bpw, inventory.num_parameters)

    def row(label: str, bpw: float, quality: Quality) -> QuantizedRow:
        return QuantizedRow(label=label, stored_bpw=bpw, num_bytes=num_bytes(bpw), quality=quality)

    def variant(name: str, plan: QuantPlan) -> SizeVariant:
        quality = figures[name]
        return SizeVariant(
            name=name,
            target_bpw=plan.target_bpw,
            stored_bpw=plan.stored_bpw,
            num_bytes=num_bytes(plan.stored_bpw),
            mean_kl_nats=quality.mean_kl_nats,
            mean_kl_se_nats=quality.mean_kl_se_nats,
            top1_agreement=quality.top1_agreement,
        )

    def rows(name: str, plan: QuantPlan) -> tuple[QuantizedRow, ...]:
        fmt, uniform = nearest_uniform(full, plan.stored_bpw)
        return (
            row(f"Original ({full.dtype})", full.max_bpw, figures[ORIGINAL]),
            row(_label(fmt), uniform.stored_bpw, figures[uniform_name(fmt)]),
            row("This model", plan.stored_bpw, figures[name]),
        )

    variants = sorted(
        (variant(name, plan) for name, plan in plans.items()), key=lambda each: each.stored_bpw
    )
    command = command_of(
        recipe,
        source=source.name,
        revision_sha=source.revision_sha if source.is_repo else "",
        calibration=calibration.name,
        evaluation=evaluation.name,
    )
    return [
        ModelFacts(
            name=name,
            source=source.name,
            source_is_repo=source.is_repo,
            revision_sha=source.revision_sha,
            model_type=inventory.model_type,
            license_fields=source.license_fields,
            gated=source.gated,
            gated_fields=source.gated_fields,
            source_is_private=source.is_private,
            source_id=source.hub_id,
            layers=inventory.layers,
            plan=plan,
            menu=recipe.menu,
            calibration_tokens=recipe.calibration_tokens,
            evaluation_tokens=recipe.evaluation_tokens,
            method=method,
            encoder=recipe.encoder,
            effort=recipe.effort,
            refine=recipe.refine,
            time_budget_mins=recipe.time_budget_mins,
            num_parameters=inventory.num_parameters,
            rows=rows(name, plan),
            ladder=tuple(variants),
            memory_bytes=memory_to_run_bytes(num_bytes(plan.stored_bpw), cache_bytes),
            context_tokens=recipe.context_tokens,
            calibration=calibration,
            evaluation=evaluation,
            seed=recipe.seed,
            command=command,
            versions=versions,
            notes=(*notes, *notes_on(plan)),
        )
        for name, plan in plans.items()
    ]


def notes_on(plan: QuantPlan) -> tuple[str, ...]:
    """Sentences that a user of a model of this plan should know."""
    gap = plan.target_bpw - plan.stored_bpw
    return (_GAP_NOTE.format(gap=gap),) if gap >= MAX_GAP_BPW else ()


def uniform_name(fmt: QuantFormat) -> str:
    """Under which name the figures of the uniform quant in `fmt` stand."""
    return f"uniform {fmt.name}"


def _label(fmt: QuantFormat) -> str:
    return f"Uniform {fmt.bits}-bit, group {fmt.group_size}"
