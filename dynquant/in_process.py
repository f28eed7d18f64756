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
from dynquant.report.forecast import Forecast, forecast
from dynquant.texts.documents import Text
from dynquant.texts.images import ImagePrompts

__all__ = ["OutputStore", "QuantizedModel", "check", "measure", "quantize"]


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A finished folder: its facts, where it is, and the text that the model generated."""

    facts: ModelFacts
    folder: Path
    sample: str


class OutputStore(Protocol):
    """Where finished folders go; a folder appears when all its files are written."""

    def check(self, names: Sequence[str], *, source: str = "") -> None:
        """Refuse before any work when one of the folders could not be made.

        Args:
            names: Of the folders.
            source: Name of the original; empty while it is unknown.

        Raises:
            OutputFolderError: A folder of that name exists that dynquant did not make, or made of
                another model.
        """
        ...

    def staged(self, names: Sequence[str]) -> AbstractContextManager[Mapping[str, Path]]:
        """Name → a folder to fill; the folders get their final names if no error is raised."""
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
    has_images: bool = False,
) -> list[Forecast]:
    """Refuse a request that cannot work, before a download or a measurement; else its forecasts.

    Args:
        source: Where the model came from; its folder may hold headers only.
        quantizer: The open model.
        recipe: How to quantize it.
        outputs: Where the folders are to go.
        table: A cost table of an earlier measurement of the same model.
        has_images: Whether questions about images are to be asked.

    Raises:
        RequestError: The request cannot work.
    """
    if has_images:
        quantizer.require_tower()
    job = Conversion(source, quantizer, recipe)
    outputs.check(list(job.targets), source=source.name)
    if table is not None:
        matched_table(table, quantizer.inventory(recipe.menu), quantizer.revision_sha)
        check_measured_for(table, recipe)
    return forecast(source, quantizer, recipe)


def measure(
    quantizer: Quantizer[W],
    text: Text,
    recipe: Recipe,
    *,
    images: ImagePrompts | None = None,
    progress: Progress,
) -> CostTable:
    """The cost of every format of every layer; one artefact for every target.

    Raises:
        TextError: The calibration text is too short.
        ImagesError: The model takes no images, or not these.
        InvalidModelError, UnsupportedModelError: See `Quantizer.check_tokenizer`.
        NonFiniteError: NaN or infinity; names the layer.
    """
    windows = quantizer.calibration_windows(text, recipe.calibration_tokens, images)
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
    calibration_images: ImagePrompts | None = None,
    evaluation_images: ImagePrompts | None = None,
    outputs: OutputStore,
    progress: Progress,
    table: CostTable | None = None,
    on_sensitivities: Callable[[Mapping[str, float]], None] = lambda _found: None,
    on_measured: Callable[[CostTable], None] = lambda _table: None,
) -> list[QuantizedModel]:
    """Quantize one model to every target of the recipe; without an error each has its folder.

    Args:
        source: Where the model came from.
        quantizer: The open model.
        recipe: How to quantize it.
        calibration: Text to measure and encode with.
        evaluation: Held-out text for the figures.
        calibration_images: Questions about images to measure and encode with.
        evaluation_images: Questions about images for the figures.
        outputs: Where the folders go.
        progress: Shows the steps.
        table: A cost table of an earlier measurement of the same model.
        on_sensitivities: Gets the sensitivities of the alignment method.
        on_measured: Gets the costs, before anything is encoded.

    Raises:
        RequestError: The request cannot work; nothing was written.
        StorageFullError: The disk filled up; nothing was kept.
        NeverPublishError: A figure is not finite, or a result differs from its plan.
    """
    job, made = Conversion(source, quantizer, recipe), Made(table=table)
    outputs.check(list(job.targets), source=source.name)
    job.read(
        calibration=calibration,
        evaluation=evaluation,
        calibration_images=calibration_images,
        evaluation_images=evaluation_images,
    )
    with ExitStack() as staging:
        for step in COMPUTED:
            if step is Step.ENCODE:
                made.folders = staging.enter_context(outputs.staged(list(job.targets)))
            job.do(step, made, progress)
            if step is Step.MEASURE and made.sensitivities is not None:
                on_sensitivities(made.sensitivities)
            if step is Step.MEASURE and made.table is not None:
                on_measured(made.table)
        for facts in made.facts:
            for name, content in file_contents(facts, made.table).items():
                outputs.write_text(made.folders[facts.name], name, content)
    return [
        QuantizedModel(
            facts=facts, folder=outputs.final(facts.name), sample=made.verified[facts.name].sample
        )
        for facts in made.facts
    ]
