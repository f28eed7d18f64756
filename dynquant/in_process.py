"""A whole conversion in this process: what the commands `quantize`, `convert` and `measure` do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dynquant.convert import (
    COMPUTED,
    Conversion,
    Made,
    Step,
    check_source,
    forecast,
    measure_costs,
)
from dynquant.model.source import ModelSource
from dynquant.progress import Progress
from dynquant.quant.plan import CostTable
from dynquant.quant.ports import Quantizer, W
from dynquant.quant.recipe import Recipe
from dynquant.report.artefacts import check_measured_for, matched_table
from dynquant.report.facts import ModelFacts
from dynquant.report.finished_files import file_contents
from dynquant.report.forecast import Forecast
from dynquant.texts.documents import Text

__all__ = ["OutputStore", "QuantizedModel", "check", "measure", "quantize"]


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A finished folder: its facts, where it is, and what it wrote when it was tried."""

    facts: ModelFacts
    folder: Path
    sample: str


class OutputStore(Protocol):
    """Where finished folders go; a folder is there whole or not at all."""

    def check(self, names: Sequence[str], *, source: str = "") -> None:
        """Refuse before any work when one of the folders could not be made.

        Args:
            names: Of the folders.
            source: Name of the original; empty while it is unknown.

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
    """The cost of every format of every layer; one artefact for every target.

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
    job, made = Conversion(source, quantizer, recipe), Made(table=table)
    outputs.check(list(job.targets), source=source.name)
    job.read(calibration=calibration, evaluation=evaluation)
    with ExitStack() as staging:
        for step in COMPUTED:
            if step is Step.ENCODE:
                made.folders = staging.enter_context(outputs.staged(list(job.targets)))
            job.do(step, made, progress)
            if step is Step.MEASURE and made.sensitivities is not None:
                on_sensitivities(made.sensitivities)
        for facts in made.facts:
            for name, content in file_contents(facts, made.table).items():
                outputs.write_text(made.folders[facts.name], name, content)
    return [
        QuantizedModel(
            facts=facts, folder=outputs.final(facts.name), sample=made.samples[facts.name]
        )
        for facts in made.facts
    ]
