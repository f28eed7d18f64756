"""The steps of one conversion, each by itself; `pipeline.py` puts them in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Generic

from dynquant.core.allocate import allocate, allocate_by_threshold, check_target
from dynquant.core.artefacts import (
    check_measured_for,
    matched_table,
    measured_on_other_text,
)
from dynquant.core.facts import ModelFacts, QuantizedRow, Rung
from dynquant.core.formats import DEFAULT_MENU, QuantFormat
from dynquant.core.naming import quantized_name
from dynquant.core.plan import CostTable, QuantPlan
from dynquant.core.planning import memory_to_run_bytes
from dynquant.core.quality import Quality
from dynquant.core.recipe import Recipe, command_of
from dynquant.core.swaps import with_formats
from dynquant.core.uniform import nearest_uniform
from dynquant.ports import ModelSource, Progress, Quantizer, Text, W

__all__ = ["ORIGINAL", "Conversion", "check_source", "measure_costs", "notes_on"]

ORIGINAL = "original"
"""Under this name the figures of the original stand among those of its quants."""

MAX_GAP_BPW = 0.01
"""A plan further below its target than this is explained on the card."""

_UNIFORM = "uniform "
_GAP_NOTE = (
    "It stores {gap:.3f} bits per weight less than was asked for: the menu of formats has no "
    "plan that comes closer without being worse."
)


class Conversion(Generic[W]):
    """One model on its way to every target of a recipe.

    What a step needs of an earlier one is passed in, so that each may run in a process of its
    own. Targets go by the name of their folder.

    Args:
        source: Where the model came from.
        quantizer: The open model.
        recipe: How.
        clock: Seconds of a clock that never goes back; for the time budget.

    Raises:
        InfeasibleTargetError: A target lies outside the feasible range.
    """

    _windows: W
    _held_out: W

    def __init__(
        self,
        source: ModelSource,
        quantizer: Quantizer[W],
        recipe: Recipe,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._source = source
        self._quantizer = quantizer
        self._recipe = recipe
        self._inventory = quantizer.inventory(recipe.menu)
        self._full = quantizer.inventory(DEFAULT_MENU)
        for target in recipe.targets_bpw:
            check_target(self._inventory, target)
        if recipe.alignment is not None:  # refuse what cannot work before measuring
            self._thresholds(dict.fromkeys((layer.path for layer in self._inventory.layers), 0.0))
        self.targets = {quantized_name(source.name, bpw): bpw for bpw in recipe.targets_bpw}

    def read(self, *, calibration: Text, evaluation: Text) -> None:
        """Read the texts, on which every later step rests, and check the tokenizer.

        Args:
            calibration: Text to measure and encode with.
            evaluation: Held-out text for the figures.

        Raises:
            TextError: A text is too short, or they overlap.
            InvalidModelError, UnsupportedModelError: The tokenizer does not open, or would be
                another one in the quantized model.
        """
        quantizer, recipe = self._quantizer, self._recipe
        self._windows = quantizer.calibration_windows(calibration, recipe.calibration_tokens)
        self._held_out = quantizer.evaluation_windows(evaluation, recipe.evaluation_tokens)
        self._held_out.check_disjoint(self._windows)
        quantizer.check_tokenizer()

    def check(self, progress: Progress) -> None:
        """Compare the source with what stock mlx-lm makes of it, before any work.

        Raises:
            InvalidModelError, UnsupportedModelError, NonFiniteError: See `Quantizer.check_source`.
        """
        check_source(self._quantizer, self._windows, progress)

    def measure(self, progress: Progress) -> CostTable:
        """What every format of every layer costs; serves every target."""
        return measure_costs(self._quantizer, self._windows, self._recipe, progress)

    def reuse(self, table: CostTable) -> CostTable:
        """What this conversion needs of a table that was measured before.

        Raises:
            SensitivitiesError: It belongs to another model or text, or was measured otherwise.
        """
        table = matched_table(table, self._inventory, self._quantizer.revision_sha)
        check_measured_for(table, self._recipe)
        if not table.calibration.is_same_text(self._windows.facts):
            raise measured_on_other_text(table)
        self._quantizer.store_as(table.inventory.dtype)
        return table

    def align(self, progress: Progress) -> Mapping[str, float]:
        """Sensitivities of the seed's method: those of the recipe, or measured ones."""
        alignment = self._recipe.alignment
        assert alignment is not None
        if alignment.sensitivities is not None:
            return alignment.sensitivities
        with progress.track({"align": 2 * self._quantizer.num_blocks + 1}) as on_step:
            return self._quantizer.align(
                self._windows, low=alignment.low, high=alignment.high, on_step=on_step
            )

    def allocate(
        self, table: CostTable | None, sensitivities: Mapping[str, float] | None = None
    ) -> dict[str, QuantPlan]:
        """A plan for every target, from costs, or from the sensitivities of the seed's method."""
        if table is None:
            assert sensitivities is not None
            return self._thresholds(sensitivities)
        return {name: self._plan(table, bpw) for name, bpw in self.targets.items()}

    def polish(self, table: CostTable, progress: Progress) -> CostTable:
        """`table` with what measuring the whole model made of the plans of this conversion."""
        effort, quantizer = self._recipe.work, self._quantizer
        plans = {bpw: self._plan(table, bpw) for bpw in self.targets.values()}
        plans = {bpw: plan for bpw, plan in plans.items() if bpw not in table.polished}
        if not (effort.num_polish_rounds and plans):
            return table
        num_steps = quantizer.num_blocks * effort.num_polish_rounds
        with progress.track({"polish": num_steps}) as on_step:
            better = quantizer.polish(
                table,
                plans,
                self._windows,
                effort=effort,
                keep_going=next(self._budget_in_shares(1)),
                on_step=on_step,
            )
        polished = {**table.polished, **{bpw: plan.formats for bpw, plan in better.items()}}
        return replace(table, polished=polished)

    def encode(
        self,
        plans: Mapping[str, QuantPlan],
        table: CostTable | None,
        folders: Mapping[str, Path],
        progress: Progress,
    ) -> None:
        """Write the weights, config and tokenizer of every target into its empty folder.

        Then refine the scales and biases there, where the recipe says so.
        """
        with progress.track({"encode": self._quantizer.num_blocks + 1}) as on_step:
            self._quantizer.encode(
                {folders[name]: plan for name, plan in plans.items()},
                self._windows,
                encoder=self._recipe.encoder,
                effort=self._recipe.work,
                importance=table.importance if table else {},
                on_step=on_step,
            )
        effort = self._recipe.work
        if not effort.num_refine_steps:
            return
        with progress.track({"refine": effort.num_refine_steps * len(plans)}) as on_step:
            for (name, plan), keep_going in zip(
                plans.items(), self._budget_in_shares(len(plans)), strict=True
            ):
                self._quantizer.refine(
                    {folders[name]: plan},
                    self._windows,
                    effort=effort,
                    keep_going=keep_going,
                    on_step=on_step,
                )

    def verify(
        self, plans: Mapping[str, QuantPlan], folders: Mapping[str, Path], progress: Progress
    ) -> dict[str, str]:
        """Load every folder in stock mlx-lm; what each model wrote when it was tried.

        Raises:
            VerificationError: A folder does not load, or is not what was planned.
        """
        samples = {}
        with progress.track({"verify": len(plans)}) as on_step:
            for name, plan in plans.items():
                samples[name] = self._quantizer.verify(folders[name], plan, self._held_out)
                on_step("verify")
        return samples

    def evaluate(
        self, plans: Mapping[str, QuantPlan], folders: Mapping[str, Path], progress: Progress
    ) -> dict[str, Quality]:
        """Figures of the original (`ORIGINAL`), of every target and of uniform quants beside it."""
        uniform = (self._uniform(plan) for plan in plans.values())
        with progress.track({"evaluate": self._quantizer.num_blocks}) as on_step:
            original, found = self._quantizer.evaluate(
                dict(folders),
                {_UNIFORM + fmt.name: plan for fmt, plan in uniform},
                self._held_out,
                on_step=on_step,
            )
        return {ORIGINAL: original, **found}

    def facts(
        self,
        plans: Mapping[str, QuantPlan],
        table: CostTable | None,
        figures: Mapping[str, Quality],
    ) -> list[ModelFacts]:
        """Everything that the cards say, one for each target."""
        ladder = tuple(
            sorted(
                (self._rung(name, plan, figures[name]) for name, plan in plans.items()),
                key=lambda rung: rung.stored_bpw,
            )
        )
        return [self._facts(name, plan, table, figures, ladder) for name, plan in plans.items()]

    def _facts(
        self,
        name: str,
        plan: QuantPlan,
        table: CostTable | None,
        figures: Mapping[str, Quality],
        ladder: tuple[Rung, ...],
    ) -> ModelFacts:
        source, recipe, quantizer = self._source, self._recipe, self._quantizer
        inventory = table.inventory if table else self._inventory
        fmt, uniform = self._uniform(plan)
        num_bytes = self._num_bytes(plan.stored_bpw)
        return ModelFacts(
            name=name,
            source=source.name,
            source_is_repo=source.is_repo,
            revision_sha=quantizer.revision_sha,
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
            method=table.method if table else "alignment",
            encoder=recipe.encoder,
            effort=recipe.effort,
            refine=recipe.refine,
            time_budget_mins=recipe.time_budget_mins,
            num_parameters=inventory.num_parameters,
            rows=(
                self._row(f"Original ({self._full.dtype})", self._full.max_bpw, figures[ORIGINAL]),
                self._row(_label(fmt), uniform.stored_bpw, figures[_UNIFORM + fmt.name]),
                self._row("This model", plan.stored_bpw, figures[name]),
            ),
            ladder=ladder,
            memory_bytes=memory_to_run_bytes(
                num_bytes, quantizer.cache_bytes(recipe.context_tokens)
            ),
            context_tokens=recipe.context_tokens,
            calibration=self._windows.facts,
            evaluation=self._held_out.facts,
            seed=recipe.seed,
            command=command_of(
                recipe,
                source=source.name,
                revision_sha=source.revision_sha if source.is_repo else "",
                calibration=self._windows.facts.name,
                evaluation=self._held_out.facts.name,
            ),
            versions=quantizer.versions,
            notes=(*quantizer.notes, *notes_on(plan)),
        )

    def _plan(self, table: CostTable, target_bpw: float) -> QuantPlan:
        plan = allocate(table.inventory, target_bpw=target_bpw)
        formats = table.polished.get(target_bpw)
        if formats is None or not self._recipe.work.num_polish_rounds:
            return plan
        return with_formats(table.inventory, plan, formats)

    def _budget_in_shares(self, num_shares: int) -> Iterator[Callable[[], bool]]:
        """For one part of the work after another, whether its time is not spent.

        The time budget begins now. Each part has an equal share of what is left when it begins,
        so that what one does not need goes to those behind it.
        """
        budget_mins = self._recipe.time_budget_mins
        if budget_mins is None:
            yield from repeat(lambda: True, num_shares)
            return
        end = self._clock() + 60 * budget_mins
        for num_left in range(num_shares, 0, -1):
            now = self._clock()
            yield partial(self._is_before, now + (end - now) / num_left)

    def _is_before(self, deadline_secs: float) -> bool:
        return self._clock() < deadline_secs

    def _rung(self, name: str, plan: QuantPlan, quality: Quality) -> Rung:
        return Rung(
            name=name,
            target_bpw=plan.target_bpw,
            stored_bpw=plan.stored_bpw,
            num_bytes=self._num_bytes(plan.stored_bpw),
            mean_kl_nats=quality.mean_kl_nats,
            mean_kl_se_nats=quality.mean_kl_se_nats,
            top1_agreement=quality.top1_agreement,
        )

    def _row(self, label: str, bpw: float, quality: Quality) -> QuantizedRow:
        return QuantizedRow(
            label=label, stored_bpw=bpw, num_bytes=self._num_bytes(bpw), quality=quality
        )

    def _num_bytes(self, bpw: float) -> int:
        return round(bpw * self._inventory.num_parameters / 8)

    def _uniform(self, plan: QuantPlan) -> tuple[QuantFormat, QuantPlan]:
        """The uniform quant whose size is nearest to that of `plan`."""
        return nearest_uniform(self._full, plan.stored_bpw)

    def _thresholds(self, sensitivities: Mapping[str, float]) -> dict[str, QuantPlan]:
        """Plans of the seed's method."""
        alignment, inventory = self._recipe.alignment, self._inventory
        assert alignment is not None
        # A layer that may take one format only has no say, and need not have been measured.
        least = min(sensitivities.values(), default=0.0)
        known = {layer.path: least for layer in inventory.layers if len(layer.formats) == 1}
        return {
            quantized_name(self._source.name, target): allocate_by_threshold(
                inventory,
                known | dict(sensitivities),
                low=alignment.low,
                high=alignment.high,
                target_bpw=target,
                tolerance=alignment.tolerance,
            )
            for target in self._recipe.targets_bpw
        }


def check_source(quantizer: Quantizer[W], windows: W, progress: Progress) -> None:
    """See `Conversion.check`."""
    with progress.track({"check": 1}) as on_step:
        quantizer.check_source(windows)
        on_step("check")


def measure_costs(
    quantizer: Quantizer[W], windows: W, recipe: Recipe, progress: Progress
) -> CostTable:
    """What every format of every layer costs, measured on `windows`."""
    num_blocks = quantizer.num_blocks
    steps = {"measure": 2 * num_blocks + 1}
    if recipe.work.probes:  # models with experts take a pass for whole plans too
        steps["probe"] = num_blocks * (1 + quantizer.inventory(recipe.menu).has_experts)
    with progress.track(steps) as on_step:
        return quantizer.measure(
            windows,
            menu=recipe.menu,
            encoder=recipe.encoder,
            effort=recipe.work,
            seed=recipe.seed,
            on_step=on_step,
        )


def notes_on(plan: QuantPlan) -> tuple[str, ...]:
    """Sentences that a user of a model of this plan should know."""
    gap = plan.target_bpw - plan.stored_bpw
    return (_GAP_NOTE.format(gap=gap),) if gap >= MAX_GAP_BPW else ()


def _label(fmt: QuantFormat) -> str:
    return f"Uniform {fmt.bits}-bit, group {fmt.group_size}"
