"""One conversion: its steps in their order, what each needs, and each step by itself.

    resolve ─> download ─> measure ─> encode ─> verify ─> evaluate ─> card ─> publish

The command line does the steps that compute in its own process (`in_process.quantize`). A runner
does all steps one by one, each step that computes in a child (`runner.job_steps`, `runner.worker`).
Both go by `Step`, `NEEDS` and `Conversion.do`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic

from dynquant.model.naming import quantized_name
from dynquant.model.source import ModelSource
from dynquant.progress import Progress
from dynquant.quant.allocate import allocate, allocate_by_threshold, check_target
from dynquant.quant.formats import DEFAULT_MENU
from dynquant.quant.plan import CostTable, QuantPlan
from dynquant.quant.ports import Quantizer, W, Windows
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import Recipe
from dynquant.quant.swaps import with_formats
from dynquant.quant.time_budget import TimeBudget
from dynquant.quant.uniform import nearest_uniform
from dynquant.quant.verified import Verified
from dynquant.report.artefacts import check_measured_for, matched_table, measured_on_other_text
from dynquant.report.facts import ModelFacts
from dynquant.report.facts_of import ORIGINAL, facts_of, uniform_name
from dynquant.texts.documents import Text
from dynquant.texts.images import ImageFacts, ImagePrompts

__all__ = [
    "COMPUTED",
    "NEEDS",
    "STEPS",
    "Conversion",
    "Made",
    "Step",
    "check_source",
    "measure_costs",
]


class Step(StrEnum):
    """The steps of a conversion, in their order."""

    RESOLVE = "resolve"  # look the model up; refuse a request that cannot work, from headers alone
    DOWNLOAD = "download"  # bring the weights and the texts
    MEASURE = "measure"  # the cost of every format of every layer
    ENCODE = "encode"  # choose formats for every target, and write its folder
    VERIFY = "verify"  # compare stock mlx-lm on each folder with its plan
    EVALUATE = "evaluate"  # perplexity and KL divergence on held-out text
    CARD = "card"  # plan, report, plots and card of each folder
    PUBLISH = "publish"  # one commit for each folder


STEPS = tuple(Step)

NEEDS: Mapping[Step, tuple[Step, ...]] = {
    Step.RESOLVE: (),
    Step.DOWNLOAD: (),
    Step.MEASURE: (Step.DOWNLOAD,),
    Step.ENCODE: (Step.DOWNLOAD, Step.MEASURE),
    Step.VERIFY: (Step.DOWNLOAD, Step.MEASURE, Step.ENCODE),
    Step.EVALUATE: (Step.DOWNLOAD, Step.MEASURE, Step.ENCODE),
    Step.CARD: (Step.DOWNLOAD, Step.MEASURE, Step.ENCODE, Step.VERIFY, Step.EVALUATE),
    Step.PUBLISH: tuple(each for each in Step if each not in {Step.RESOLVE, Step.PUBLISH}),
}
"""Step → the steps whose results it reads, in their order; `resolve` comes before all others."""

COMPUTED = (Step.MEASURE, Step.ENCODE, Step.VERIFY, Step.EVALUATE, Step.CARD)
"""The steps that open the model."""


@dataclass(kw_only=True)
class Made:
    """The results of the steps of one conversion so far; models go by the name of their folder.

    Attributes:
        table: Costs, by `measure`; or the costs of an earlier measurement, to use again.
        sensitivities: Path of a layer → sensitivity, by `measure` with the alignment method.
        plans: Formats of every layer, from the costs or the sensitivities.
        folders: Where the models are written.
        verified: A sample of each model and the runtimes that run it, by `verify`.
        figures: Quality of the original, the models and uniform quants, by `evaluate`.
        facts: The content of the cards, by `card`.
    """

    table: CostTable | None = None
    sensitivities: Mapping[str, float] | None = None
    plans: Mapping[str, QuantPlan] | None = None
    folders: Mapping[str, Path] = field(default_factory=dict)
    verified: Mapping[str, Verified] = field(default_factory=dict)
    figures: Mapping[str, Quality] = field(default_factory=dict)
    facts: Sequence[ModelFacts] = ()


class Conversion(Generic[W]):
    """One model on its way to every target of a recipe.

    A step gets the results of earlier steps as arguments, so each may run in its own process.

    Args:
        source: Where the model came from.
        quantizer: The open model.
        recipe: How to quantize it.
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
        self._time_budget = TimeBudget(recipe.time_budget_mins, clock)
        self._source = source
        self._quantizer = quantizer
        self._recipe = recipe
        self._inventory = quantizer.inventory(recipe.menu)
        self._full = quantizer.inventory(DEFAULT_MENU)
        self.targets = {quantized_name(source.name, bpw): bpw for bpw in recipe.targets_bpw}
        for target in recipe.targets_bpw:
            check_target(self._inventory, target)
        if recipe.alignment is not None:  # refuse formats and targets before measuring
            self._thresholds(dict.fromkeys((layer.path for layer in self._inventory.layers), 0.0))

    def do(self, step: Step, made: Made, progress: Progress) -> None:
        """Do one of the steps that compute; its results go into `made`.

        Raises:
            DynquantError: See the step's own method.
        """
        match step:
            case Step.MEASURE if self._recipe.alignment is not None:
                made.table = None
                check_source(self._quantizer, self._windows, progress)
                made.sensitivities = self.align(progress)
            case Step.MEASURE:
                table = None if made.table is None else self.reuse(made.table)
                check_source(self._quantizer, self._windows, progress)
                if table is None:
                    table = measure_costs(self._quantizer, self._windows, self._recipe, progress)
                made.table = self.polish(table, progress)
            case Step.ENCODE:
                self.encode(self._plans(made), made.table, made.folders, progress)
            case Step.VERIFY:
                made.verified = self.verify(self._plans(made), made.folders, progress)
            case Step.EVALUATE:
                made.figures = self.evaluate(self._plans(made), made.folders, progress)
            case Step.CARD:
                made.facts = self.facts(self._plans(made), made.table, made.verified, made.figures)
            case _:
                raise ValueError(step)

    def _plans(self, made: Made) -> Mapping[str, QuantPlan]:
        if made.plans is None:
            made.plans = self.allocate(made.table, made.sensitivities)
        return made.plans

    def read(
        self,
        *,
        calibration: Text,
        evaluation: Text,
        calibration_images: ImagePrompts | None = None,
        evaluation_images: ImagePrompts | None = None,
    ) -> None:
        """Cut the texts into the windows of all later steps, and check tokenizer and processor.

        Args:
            calibration: Text to measure and encode with.
            evaluation: Held-out text for the figures.
            calibration_images: Questions about images to measure and encode with.
            evaluation_images: Questions about images for the figures.

        Raises:
            TextError: A text is too short, or they overlap.
            ImagesError: The model takes no images, or not these.
            InvalidModelError, UnsupportedModelError: The tokenizer does not open, or would differ
                in the quantized model.
        """
        quantizer, recipe = self._quantizer, self._recipe
        self._windows = quantizer.calibration_windows(
            calibration,
            recipe.calibration_tokens,
            calibration_images,
            num_fitting_tokens=recipe.fitting_tokens,
        )
        self._held_out = quantizer.evaluation_windows(
            evaluation, recipe.evaluation_tokens, evaluation_images
        )
        self._held_out.check_disjoint(self._windows)
        quantizer.check_tokenizer()

    def windows_to_json(self) -> dict[str, Any]:
        """The texts as `read` has cut them, for the other processes of the same job."""
        return {"calibration": self._windows.to_json(), "evaluation": self._held_out.to_json()}

    def use_windows(
        self,
        raw: Mapping[str, Any],
        *,
        calibration_images: ImagePrompts | None = None,
        evaluation_images: ImagePrompts | None = None,
    ) -> None:
        """Take the windows that `windows_to_json` gave in another process, in place of `read`.

        Raises:
            InvalidModelError: They are not windows of this model.
        """
        self._windows = self._quantizer.windows_from_json(
            raw.get("calibration"), calibration_images
        )
        self._held_out = self._quantizer.windows_from_json(raw.get("evaluation"), evaluation_images)

    def reuse(self, table: CostTable) -> CostTable:
        """The part of an earlier cost table that this conversion needs.

        Raises:
            SensitivitiesError: It belongs to another model or text, or was measured with other
                options.
        """
        table = matched_table(table, self._inventory, self._quantizer.revision_sha)
        check_measured_for(table, self._recipe)
        images = _facts_of_images(self._windows)
        if not (
            table.calibration.is_same_text(self._windows.facts)
            and _sha256(table.calibration_images) == _sha256(images)
        ):
            raise measured_on_other_text(table)
        self._quantizer.store_as(table.inventory.dtype)
        return table

    def align(self, progress: Progress) -> Mapping[str, float]:
        """Sensitivities of the alignment method, from the recipe or measured."""
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
        """A plan for every target, from costs or from sensitivities."""
        if table is None:
            assert sensitivities is not None
            return self._thresholds(sensitivities)
        return {name: self._plan(table, bpw) for name, bpw in self.targets.items()}

    def polish(self, table: CostTable, progress: Progress) -> CostTable:
        """`table` with the plans of this conversion as trials on the whole model improved them."""
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
                keep_going=next(self._time_budget.shares(1)),
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

        Then fit whole blocks there, and distil scales and biases, where the recipe says so.
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
        effort, num_blocks = self._recipe.work, self._quantizer.num_blocks
        if self._recipe.fits_blocks:
            with progress.track({"reconstruct": num_blocks * len(plans)}) as on_step:
                self._quantizer.reconstruct(
                    {folders[name]: plan for name, plan in plans.items()},
                    self._windows,
                    effort=effort,
                    on_step=on_step,
                )
        if not effort.num_distil_steps:
            return
        shares = self._time_budget.shares(len(plans))
        with progress.track({"distil": effort.num_distil_steps * len(plans)}) as on_step:
            for (name, plan), keep_going in zip(plans.items(), shares, strict=True):
                self._quantizer.distil(
                    {folders[name]: plan},
                    self._windows,
                    effort=effort,
                    keep_going=keep_going,
                    on_step=on_step,
                )

    def verify(
        self, plans: Mapping[str, QuantPlan], folders: Mapping[str, Path], progress: Progress
    ) -> dict[str, Verified]:
        """Run every folder in its stock runtimes.

        Raises:
            VerificationError: A folder does not load, or differs from its plan.
        """
        found = {}
        with progress.track({"verify": len(plans)}) as on_step:
            for name, plan in plans.items():
                found[name] = self._quantizer.verify(
                    folders[name], plan, self._held_out, effort=self._recipe.work
                )
                on_step("verify")
        return found

    def evaluate(
        self, plans: Mapping[str, QuantPlan], folders: Mapping[str, Path], progress: Progress
    ) -> dict[str, Quality]:
        """Figures of the original (`ORIGINAL`), of every target and of uniform quants beside it."""
        uniform = (nearest_uniform(self._full, plan.stored_bpw) for plan in plans.values())
        with progress.track({"evaluate": self._quantizer.num_blocks}) as on_step:
            original, found = self._quantizer.evaluate(
                dict(folders),
                {uniform_name(fmt): plan for fmt, plan in uniform},
                self._held_out,
                on_step=on_step,
            )
        return {ORIGINAL: original, **found}

    def facts(
        self,
        plans: Mapping[str, QuantPlan],
        table: CostTable | None,
        verified: Mapping[str, Verified],
        figures: Mapping[str, Quality],
    ) -> list[ModelFacts]:
        """The content of the cards, one for each target."""
        quantizer = self._quantizer
        return facts_of(
            plans,
            figures,
            verified,
            source=replace(self._source, revision_sha=quantizer.revision_sha),
            recipe=self._recipe,
            inventory=table.inventory if table else self._inventory,
            full=self._full,
            method=table.method if table else "alignment",
            calibration=self._windows.facts,
            evaluation=self._held_out.facts,
            calibration_images=_facts_of_images(self._windows),
            evaluation_images=_facts_of_images(self._held_out),
            cache_bytes=quantizer.cache_bytes(self._recipe.context_tokens),
            read_shares=quantizer.read_shares(),
            num_blocks=quantizer.num_blocks,
            versions=quantizer.versions,
            notes=quantizer.notes,
        )

    def _plan(self, table: CostTable, target_bpw: float) -> QuantPlan:
        plan = allocate(table.inventory, target_bpw=target_bpw)
        formats = table.polished.get(target_bpw)
        if formats is None or not self._recipe.work.num_polish_rounds:
            return plan
        return with_formats(table.inventory, plan, formats)

    def _thresholds(self, sensitivities: Mapping[str, float]) -> dict[str, QuantPlan]:
        """Plans of the alignment method."""
        alignment, inventory = self._recipe.alignment, self._inventory
        assert alignment is not None
        # A layer that may take one format only needs no sensitivity.
        least = min(sensitivities.values(), default=0.0)
        known = {layer.path: least for layer in inventory.layers if len(layer.formats) == 1}
        return {
            name: allocate_by_threshold(
                inventory,
                known | dict(sensitivities),
                low=alignment.low,
                high=alignment.high,
                target_bpw=target,
                tolerance=alignment.tolerance,
            )
            for name, target in self.targets.items()
        }


def _facts_of_images(windows: Windows) -> ImageFacts | None:
    return None if windows.images is None else windows.images.facts


def _sha256(images: ImageFacts | None) -> str | None:
    return None if images is None else images.sha256


def check_source(quantizer: Quantizer[W], windows: W, progress: Progress) -> None:
    """Compare the source with stock mlx-lm's reading of it, before any work.

    Raises:
        InvalidModelError, UnsupportedModelError, NonFiniteError: See `Quantizer.check_source`.
    """
    with progress.track({"check": 1}) as on_step:
        quantizer.check_source(windows)
        on_step("check")


def measure_costs(
    quantizer: Quantizer[W], windows: W, recipe: Recipe, progress: Progress
) -> CostTable:
    """The cost of every format of every layer, measured on `windows`; serves every target."""
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
