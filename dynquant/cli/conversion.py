"""Shared by `quantize` and `convert`: their options, and the conversion itself, timed."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from dynquant.cli import console
from dynquant.cli.options import (
    DEFAULT_RECIPE,
    Calibration,
    CalibrationImages,
    CalibrationTokens,
    Context,
    EncoderName,
    Evaluation,
    EvaluationImages,
    EvaluationTokens,
    Seed,
    WorkOptions,
    menu_in,
    read,
    require_two_texts,
    targets_in,
)
from dynquant.cli.speed import record
from dynquant.in_process import QuantizedModel, quantize
from dynquant.model.source import ModelSource
from dynquant.quant.plan import CostTable
from dynquant.quant.recipe import Recipe
from dynquant.report.artefacts import cost_table_from_json, cost_table_to_json, is_cost_table
from dynquant.report.outputs import OutputFolders, write_file
from dynquant.settings import Settings
from dynquant.texts.corpus import Corpus
from dynquant.texts.defaults import DEFAULT_CALIBRATION, DEFAULT_EVALUATION
from dynquant.texts.documents import Text
from dynquant.texts.images import ImagePrompts

if TYPE_CHECKING:
    from dynquant.quant.mlx.quantizer import MlxQuantizer

__all__ = ["ConversionOptions", "quantize_timed"]


class Texts(TypedDict):
    """The texts and images that a conversion calibrates and evaluates on."""

    calibration: Text
    evaluation: Text
    calibration_images: ImagePrompts | None
    evaluation_images: ImagePrompts | None


@dataclass(frozen=True, kw_only=True)
class ConversionOptions(WorkOptions):
    """The options of a conversion on this machine.

    Raises:
        TextError: The texts to calibrate and to evaluate on are the same.
    """

    encoder: EncoderName = DEFAULT_RECIPE.encoder
    calibration: Calibration = DEFAULT_CALIBRATION
    evaluation: Evaluation = DEFAULT_EVALUATION
    calibration_images: CalibrationImages = None
    evaluation_images: EvaluationImages = None
    cost_table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A cost table of 'dynquant measure' to use again."),
    ] = None
    calibration_tokens: CalibrationTokens = DEFAULT_RECIPE.calibration_tokens
    evaluation_tokens: EvaluationTokens = DEFAULT_RECIPE.evaluation_tokens
    context_tokens: Context = DEFAULT_RECIPE.context_tokens
    seed: Seed = DEFAULT_RECIPE.seed

    def __post_init__(self) -> None:
        require_two_texts(self.calibration, self.evaluation)

    def recipe(self, bpw: str) -> Recipe:
        """The recipe for the targets of `--bpw`; its other fields are options of the same names."""
        names = {each.name for each in fields(Recipe)}
        options = {name: value for name, value in asdict(self).items() if name in names}
        options |= {"tower": self.tower_choice}
        return Recipe(targets_bpw=targets_in(bpw), menu=menu_in(self.formats), **options)

    def table(self) -> CostTable | None:
        """The table of `--cost-table`."""
        path = self.cost_table
        return None if path is None else cost_table_from_json(read(path), name=path.name)

    @property
    def has_images(self) -> bool:
        """Whether the model is asked about images."""
        return (self.calibration_images or self.evaluation_images) is not None

    def texts(self, corpus: Corpus) -> Texts:
        """Both texts, and the images, under the names of their options, opened."""

        def images(source: str | None) -> ImagePrompts | None:
            return None if source is None else corpus.open_images(source)

        return {
            "calibration_images": images(self.calibration_images),
            "evaluation_images": images(self.evaluation_images),
            "calibration": corpus.open(self.calibration),
            "evaluation": corpus.open(self.evaluation),
        }


def quantize_timed(
    source: ModelSource,
    quantizer: MlxQuantizer,
    recipe: Recipe,
    *,
    texts: Texts,
    outputs: OutputFolders,
    table: CostTable | None,
    on_sensitivities: Callable[[Mapping[str, float]], None] = lambda _found: None,
) -> list[QuantizedModel]:
    """Quantize with progress bars; how long it took is kept for the next forecast.

    An interrupted run keeps its measurement beside the output folder.
    """
    started = time.monotonic()
    measured: list[CostTable] = []
    try:
        finished = quantize(
            source,
            quantizer,
            recipe,
            **texts,
            outputs=outputs,
            progress=console.ConsoleProgress(),
            table=table,
            on_sensitivities=on_sensitivities,
            on_measured=measured.append,
        )
    except KeyboardInterrupt as interrupt:
        if table is None and measured:
            raise KeyboardInterrupt(_kept(outputs, measured[-1])) from interrupt
        raise
    record(
        Settings.from_environment(os.environ).home,
        secs=time.monotonic() - started,
        num_parameters=finished[0].facts.num_parameters,
        recipe=recipe,
    )
    return finished


def _kept(outputs: OutputFolders, measured: CostTable) -> str:
    """Keep what was measured; says what is kept, and how to go on."""
    file = outputs.beside("cost_table.json")
    if file.exists() and not is_cost_table(read(file)):
        return f"'{file}' is in the way of the measurement, which is lost."
    write_file(file, cost_table_to_json(measured))
    return (
        f"The download is kept, and the measurement is in '{file}'. To go on from there, add "
        f"--cost-table {shlex.quote(str(file))} to the same command."
    )
