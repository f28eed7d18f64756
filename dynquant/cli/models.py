"""The commands that work on a model on this machine: measure, quantize, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynquant.cli import console
from dynquant.cli.alignment import AlignmentOptions
from dynquant.cli.conversion import ConversionOptions, quantize_timed
from dynquant.cli.options import (
    DEFAULT_RECIPE,
    Bpw,
    Calibration,
    CalibrationImages,
    CalibrationTokens,
    Dequantize,
    Dtype,
    EffortName,
    EncoderName,
    Evaluation,
    EvaluationImages,
    EvaluationTokens,
    Formats,
    Json,
    Model,
    Revision,
    Seed,
    TextOnly,
    TowerChoice,
    menu_in,
    model_in,
    read,
    require_room,
    tower_of,
    with_option_records,
)
from dynquant.errors import OutputFolderError
from dynquant.in_process import QuantizedModel, check
from dynquant.in_process import measure as measure_model
from dynquant.model.source import ModelSource
from dynquant.quant.recipe import Recipe
from dynquant.report.artefacts import cost_table_to_json, formats_to_json, is_cost_table, report
from dynquant.report.outputs import OutputFolders, check_file, write_file
from dynquant.texts.defaults import DEFAULT_CALIBRATION, DEFAULT_EVALUATION

if TYPE_CHECKING:
    from dynquant.quant.mlx.quantizer import MlxQuantizer

__all__ = ["evaluate", "measure", "quantize"]


def measure(
    model: Model,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the cost table.")],
    calibration: Calibration = DEFAULT_CALIBRATION,
    formats: Formats = None,
    encoder: EncoderName = DEFAULT_RECIPE.encoder,
    effort: EffortName = DEFAULT_RECIPE.effort,
    calibration_tokens: CalibrationTokens = DEFAULT_RECIPE.calibration_tokens,
    calibration_images: CalibrationImages = None,
    seed: Seed = DEFAULT_RECIPE.seed,
    revision: Revision = None,
    dequantize: Dequantize = False,
    dtype: Dtype = DEFAULT_RECIPE.dtype,
    tower: TowerChoice = DEFAULT_RECIPE.tower,
    text_only: TextOnly = False,
    as_json: Json = False,
) -> None:
    """Measure the cost of every format of every layer, once."""
    from dynquant.cli.wiring import open_model, open_texts

    recipe = Recipe(
        targets_bpw=(),
        menu=menu_in(formats),
        encoder=encoder,
        effort=effort,
        calibration_tokens=calibration_tokens,
        seed=seed,
        dtype=dtype,
        tower=tower_of(tower, text_only=text_only),
    )
    check_file(out)
    if out.exists() and not is_cost_table(read(out)):
        raise OutputFolderError(
            f"'{out}' exists and is no cost table of dynquant. Pass another --out."
        )
    texts, progress = open_texts(), console.ConsoleProgress()
    text, images = texts.open(calibration), None
    if calibration_images is not None:
        images = texts.open_images(calibration_images)

    def refuse(_source: ModelSource, headers: MlxQuantizer) -> None:
        headers.inventory(recipe.menu)
        if images is not None:
            headers.require_tower()

    with open_model(
        model,
        revision=revision,
        dequantize=dequantize,
        dtype=dtype,
        tower=recipe.tower,
        progress=progress,
        check=refuse,
    ) as (_, quantizer):
        table = measure_model(quantizer, text, recipe, images=images, progress=progress)
    write_file(out, cost_table_to_json(table))
    if as_json:
        console.print_json(
            {"cost_table": str(out), "method": table.method, "layers": len(table.inventory.layers)}
        )
    else:
        console.stdout.print(f"Wrote {out}: {len(table.inventory.layers)} layers, {table.method}.")


@with_option_records
def quantize(
    model: Model,
    bpw: Bpw,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder for one model folder per target.")
    ],
    alignment: AlignmentOptions,
    how: ConversionOptions,
    as_json: Json = False,
) -> None:
    """Quantize a model to each target, into finished folders.

    Each folder has the weights, the card and the figures.
    """
    from dynquant.cli.wiring import open_model, open_texts

    alignment.require_match(
        {"--formats": how.formats is not None, "--cost-table": how.cost_table is not None}
    )
    recipe = alignment.applied_to(how.recipe(bpw))
    outputs, table = OutputFolders(out), how.table()
    outputs.check([])
    texts = how.texts(open_texts())

    def refuse(source: ModelSource, headers: MlxQuantizer) -> None:
        alignment.with_stored(recipe, headers)
        found = check(
            source, headers, recipe, outputs=outputs, table=table, has_images=how.has_images
        )
        require_room(out, found)

    with open_model(
        model,
        revision=how.revision,
        dequantize=how.dequantize,
        dtype=how.dtype,
        tower=recipe.tower,
        progress=console.ConsoleProgress(),
        check=refuse,
    ) as (source, quantizer):
        finished = quantize_timed(
            source,
            quantizer,
            alignment.with_stored(recipe, quantizer),
            texts=texts,
            outputs=outputs,
            table=table,
            on_sensitivities=alignment.store,
        )
    if as_json:
        console.print_json({"models": [_result(each) for each in finished]})
    else:
        console.print_finished(finished)


def evaluate(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A folder that dynquant or mlx-lm wrote.")
    ],
    reference: Annotated[
        str,
        typer.Option(
            metavar="MODEL", parser=model_in, help="The original: a folder, or an id on the Hub."
        ),
    ],
    evaluation: Evaluation = DEFAULT_EVALUATION,
    eval_tokens: EvaluationTokens = DEFAULT_RECIPE.evaluation_tokens,
    evaluation_images: EvaluationImages = None,
    as_json: Json = False,
) -> None:
    """Compare a quantized folder with its original.

    Perplexity, KL divergence and top-1 agreement, on held-out text.
    """
    from dynquant.cli.wiring import evaluate_folder

    original, quality = evaluate_folder(
        folder,
        reference,
        evaluation,
        num_tokens=eval_tokens,
        evaluation_images=evaluation_images,
        progress=console.ConsoleProgress(),
    )
    if as_json:
        console.print_json({"original": original.to_json(), "quantized": quality.to_json()})
    else:
        console.print_quality(
            [("Original", None, None, original), (folder.absolute().name, None, None, quality)]
        )


def _result(model: QuantizedModel) -> dict[str, Any]:
    rows = {row.label: row.quality.to_json() for row in model.facts.rows}
    return {
        "folder": str(model.folder),
        "stored_bpw": model.facts.plan.stored_bpw,
        "target_bpw": model.facts.plan.target_bpw,
        **rows["This model"],
        "sample": model.sample,
        "formats": formats_to_json(model.facts.plan),
        "report": report(model.facts),
    }
