"""The steps of one conversion, each by itself; `pipeline.py` puts them in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Generic, Protocol

from dynquant.model.naming import quantized_name
from dynquant.model.source import ModelSource
from dynquant.progress import Progress
from dynquant.quant.allocate import allocate, allocate_by_threshold, check_target
from dynquant.quant.formats import DEFAULT_MENU, QuantFormat
from dynquant.quant.plan import CostTable, QuantPlan
from dynquant.quant.ports import Quantizer, W
from dynquant.quant.quality import Quality
from dynquant.quant.recipe import Recipe, command_of
from dynquant.quant.swaps import with_formats
from dynquant.quant.uniform import nearest_uniform
from dynquant.report.artefacts import (
    check_measured_for,
    matched_table,
    measured_on_other_text,
)
from dynquant.report.facts import ModelFacts, QuantizedRow, SizeVariant
from dynquant.report.finished_files import papers
from dynquant.report.forecast import Forecast, fitting_bpw, memory_to_run_bytes
from dynquant.texts.documents import Text

__all__ = [
    "ORIGINAL",
    "Conversion",
    "OutputStore",
    "QuantizedModel",
    "check",
    "check_source",
    "forecast",
    "measure",
    "measure_costs",
    "notes_on",
    "quantize",
]

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
        ladder: tuple[SizeVariant, ...],
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

    def _rung(self, name: str, plan: QuantPlan, quality: Quality) -> SizeVariant:
        return SizeVariant(
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


class OutputStore(Protocol):
    """Where finished folders go; a folder is there whole or not at all."""

    def check(self, names: Sequence[str], *, source: str = "") -> None:
        """Refuse before any work when one of the folders could not be made.

        Args:
            names: Of the folders.
            source: What they will be made of; empty while nobody knows.

        Raises:
            OutputFolderError: Something that is not ours, or is made of another model, is in the
                way.
        """
        ...

    def staged(self, names: Sequence[str]) -> AbstractContextManager[Mapping[str, Path]]:
        """Name → a folder to fill; on leaving without an error they take their final names."""
        ...

    def write_text(self, folder: Path, name: str, content: str) -> None:
        """Write a file into a staged folder."""
        ...

    def read_text(self, folder: Path, name: str) -> str | None:
        """Contents of a file of a folder; None if there is no such file."""
        ...

    def final(self, name: str) -> Path:
        """Where the finished folder is."""
        ...


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
            notes=tuple(filter(None, (*quantizer.notes, inventory.why_unquantized.strip()))),
        )
        for target, size_bytes in sizes.items()
    ]


def check(
    source: ModelSource,
    quantizer: Quantizer[W],
    recipe: Recipe,
    *,
    outputs: OutputStore,
    table: CostTable | None = None,
) -> list[Forecast]:
    """Refuse what cannot work before a download or a measurement; what each target takes.

    Args:
        source: Where the model came from; its folder may hold headers only.
        quantizer: The open model.
        recipe: How.
        outputs: Where the folders are to go.
        table: A cost table of an earlier measurement of the same model.

    Raises:
        RequestError: The request cannot work.
    """
    job = Conversion(source, quantizer, recipe)
    outputs.check(list(job.targets), source=source.name)
    if table is not None:
        matched_table(table, quantizer.inventory(recipe.menu), quantizer.revision_sha)
        check_measured_for(table, recipe)
    return forecast(source, quantizer, recipe)


def measure(
    quantizer: Quantizer[W], text: Text, recipe: Recipe, *, progress: Progress
) -> CostTable:
    """What every format of every layer costs; one artefact for every target.

    Raises:
        TextError: The calibration text is too short.
        InvalidModelError, UnsupportedModelError: See `Quantizer.check_tokenizer`.
        NonFiniteError: NaN or infinity; names the layer.
    """
    windows = quantizer.calibration_windows(text, recipe.calibration_tokens)
    quantizer.check_tokenizer()
    check_source(quantizer, windows, progress)
    return measure_costs(quantizer, windows, recipe, progress)


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
    job = Conversion(source, quantizer, recipe)
    outputs.check(list(job.targets), source=source.name)
    job.read(calibration=calibration, evaluation=evaluation)
    known = job.reuse(table) if table and recipe.alignment is None else None
    job.check(progress)
    if recipe.alignment is None:
        table = job.polish(known or job.measure(progress), progress)
        plans = job.allocate(table)
    else:
        table = None
        sensitivities = job.align(progress)
        on_sensitivities(sensitivities)
        plans = job.allocate(None, sensitivities)

    with outputs.staged(list(plans)) as folders:
        job.encode(plans, table, folders, progress)
        samples = job.verify(plans, folders, progress)
        figures = job.evaluate(plans, folders, progress)
        finished = job.facts(plans, table, figures)
        for facts in finished:
            for name, content in papers(facts, table).items():
                outputs.write_text(folders[facts.name], name, content)
    return [
        QuantizedModel(facts=facts, folder=outputs.final(facts.name), sample=samples[facts.name])
        for facts in finished
    ]
