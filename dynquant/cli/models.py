"""The commands on one machine: plan, measure, quantize, evaluate."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynquant.cli import console
from dynquant.cli.options import (
    DEFAULT_RECIPE,
    Bpw,
    Calibration,
    CalibrationTokens,
    Context,
    CostTableFile,
    Dequantize,
    EffortName,
    EncoderName,
    Evaluation,
    EvaluationTokens,
    Formats,
    Json,
    Model,
    Refine,
    Revision,
    Seed,
    TimeBudget,
    cost_table_in,
    menu_in,
    read,
    require_room,
    require_two_texts,
    targets_in,
)
from dynquant.convert import forecast
from dynquant.errors import InvalidOptionError, OutputFolderError
from dynquant.in_process import QuantizedModel, check
from dynquant.in_process import measure as measure_model
from dynquant.in_process import quantize as quantize_model
from dynquant.model.source import ModelSource
from dynquant.quant.formats import QuantFormat
from dynquant.quant.recipe import Alignment, Recipe
from dynquant.report.artefacts import (
    cost_table_to_json,
    formats_to_json,
    is_cost_table,
    report,
    sensitivities_from_json,
    sensitivities_to_json,
)
from dynquant.report.forecast import parse_memory
from dynquant.report.outputs import OutputFolders, check_file, write_file
from dynquant.settings import Settings
from dynquant.texts.defaults import DEFAULT_CALIBRATION, DEFAULT_EVALUATION

if TYPE_CHECKING:
    from dynquant.quant.mlx.quantizer import MlxQuantizer

__all__ = ["evaluate", "measure", "plan", "quantize"]

_SEED_PAIR = ("4g64", "5g64", 0.0)  # formats and tolerance of mlx_lm.dynamic_quant


def plan(
    model: Model,
    bpw: Annotated[
        str | None, typer.Option(help="Stored bits per weight; several with commas.")
    ] = None,
    fit: Annotated[
        str | None, typer.Option(help="Memory of your Mac, such as 16GB, instead of --bpw.")
    ] = None,
    formats: Formats = None,
    context: Context = DEFAULT_RECIPE.context_tokens,
    revision: Revision = None,
    dequantize: Dequantize = False,
    as_json: Json = False,
) -> None:
    """Say what a target gives and takes, from the headers alone: nothing is downloaded or read."""
    from dynquant.cli.opening import open_model  # MLX takes a second to import
    from dynquant.cli.speed import expected_secs

    if (bpw is None) == (fit is None):
        raise InvalidOptionError("Pass either --bpw or --fit.")
    memory_bytes = None if fit is None else parse_memory(fit)
    recipe = Recipe(
        targets_bpw=() if bpw is None else targets_in(bpw),
        menu=menu_in(formats),
        context_tokens=context,
    )
    with open_model(model, revision=revision, headers_only=True, dequantize=dequantize) as (
        source,
        quantizer,
    ):
        found = forecast(source, quantizer, recipe, fit_memory_bytes=memory_bytes)
        secs = expected_secs(
            Settings.from_environment(os.environ).home,
            num_parameters=found[0].num_parameters,
            recipe=recipe,
        )
    if as_json:
        console.print_json(
            {
                "plans": [asdict(each) for each in found],
                "conversion_secs": secs,
                "license": dict(source.license_fields),
                "gated": source.gated,
                "revision_sha": source.revision_sha,
            }
        )
    else:
        console.print_forecasts(found)
        console.print_outlook(source, secs)


def measure(
    model: Model,
    out: Annotated[Path, typer.Option(help="Where to write the cost table.")],
    calibration: Calibration = DEFAULT_CALIBRATION,
    formats: Formats = None,
    encoder: EncoderName = DEFAULT_RECIPE.encoder,
    effort: EffortName = DEFAULT_RECIPE.effort,
    calibration_tokens: CalibrationTokens = DEFAULT_RECIPE.calibration_tokens,
    seed: Seed = DEFAULT_RECIPE.seed,
    revision: Revision = None,
    dequantize: Dequantize = False,
    as_json: Json = False,
) -> None:
    """Measure what every format of every layer costs, once for all targets."""
    from dynquant.cli.opening import open_model, open_texts

    recipe = Recipe(
        targets_bpw=(),
        menu=menu_in(formats),
        encoder=encoder,
        effort=effort,
        calibration_tokens=calibration_tokens,
        seed=seed,
    )
    check_file(out)
    if out.exists() and not is_cost_table(read(out)):
        raise OutputFolderError(
            f"'{out}' exists and is no cost table of dynquant. Pass another --out."
        )
    text, progress = open_texts().open(calibration), console.ConsoleProgress()
    with open_model(
        model,
        revision=revision,
        dequantize=dequantize,
        progress=progress,
        check=lambda _, headers: headers.inventory(recipe.menu),
    ) as (_, quantizer):
        table = measure_model(quantizer, text, recipe, progress=progress)
    write_file(out, cost_table_to_json(table))
    if as_json:
        console.print_json(
            {"cost_table": str(out), "method": table.method, "layers": len(table.inventory.layers)}
        )
    else:
        console.stdout.print(f"Wrote {out}: {len(table.inventory.layers)} layers, {table.method}.")


def quantize(
    model: Model,
    bpw: Bpw,
    out: Annotated[Path, typer.Option(help="Folder for one model folder per target.")],
    method: Annotated[str, typer.Option(help="fisher, or alignment (mlx_lm's own).")] = "fisher",
    formats: Formats = None,
    encoder: EncoderName = DEFAULT_RECIPE.encoder,
    effort: EffortName = DEFAULT_RECIPE.effort,
    refine: Refine = DEFAULT_RECIPE.refine,
    time_budget: TimeBudget = None,
    calibration: Calibration = DEFAULT_CALIBRATION,
    evaluation: Evaluation = DEFAULT_EVALUATION,
    cost_table: CostTableFile = None,
    sensitivities: Annotated[
        Path | None,
        typer.Option(help="With --method alignment: read this file, or write it if it is new."),
    ] = None,
    low: Annotated[
        str, typer.Option(help="With --method alignment: the smaller format.")
    ] = _SEED_PAIR[0],
    high: Annotated[
        str, typer.Option(help="With --method alignment: the larger one.")
    ] = _SEED_PAIR[1],
    tolerance: Annotated[
        float,
        typer.Option(help="With --method alignment: share of the range that counts as equal."),
    ] = _SEED_PAIR[2],
    calibration_tokens: CalibrationTokens = DEFAULT_RECIPE.calibration_tokens,
    eval_tokens: EvaluationTokens = DEFAULT_RECIPE.evaluation_tokens,
    context: Context = DEFAULT_RECIPE.context_tokens,
    seed: Seed = DEFAULT_RECIPE.seed,
    revision: Revision = None,
    dequantize: Dequantize = False,
    as_json: Json = False,
) -> None:
    """Quantize a model to each target, one finished folder each, with its card and figures."""
    from dynquant.cli.opening import open_model, open_texts
    from dynquant.cli.speed import timed

    home = Settings.from_environment(os.environ).home
    aligned = _is_aligned(
        method,
        of_alignment={
            "--sensitivities": sensitivities is not None,
            "--low": low != _SEED_PAIR[0],
            "--high": high != _SEED_PAIR[1],
            "--tolerance": tolerance != _SEED_PAIR[2],
        },
        of_fisher={"--formats": formats is not None, "--cost-table": cost_table is not None},
    )
    pair = (QuantFormat.from_name(low), QuantFormat.from_name(high))
    alignment = Alignment(low=pair[0], high=pair[1], tolerance=tolerance)
    recipe = Recipe(
        targets_bpw=targets_in(bpw),
        menu=pair if aligned else menu_in(formats),
        encoder=encoder,
        effort=effort,
        refine=refine,
        time_budget_mins=time_budget,
        alignment=alignment if aligned else None,
        calibration_tokens=calibration_tokens,
        evaluation_tokens=eval_tokens,
        context_tokens=context,
        seed=seed,
        dequantize=dequantize,
    )
    require_two_texts(calibration, evaluation)
    outputs, table = OutputFolders(out), cost_table_in(cost_table)
    outputs.check([])
    if sensitivities is not None:
        check_file(sensitivities)
    texts = open_texts()
    calibration_text, evaluation_text = texts.open(calibration), texts.open(evaluation)

    def known(quantizer: MlxQuantizer) -> Mapping[str, float] | None:
        """The sensitivities in the file, if it is there."""
        if sensitivities is None or not sensitivities.exists():
            return None
        return sensitivities_from_json(
            read(sensitivities), quantizer.inventory(pair), name=sensitivities.name
        )

    def refuse(source: ModelSource, headers: MlxQuantizer) -> None:
        known(headers)
        found = check(source, headers, recipe, outputs=outputs, table=table)
        require_room(out, found)

    progress = console.ConsoleProgress()
    with open_model(
        model, revision=revision, dequantize=dequantize, progress=progress, check=refuse
    ) as (source, quantizer):
        found = known(quantizer)
        if aligned:
            recipe = replace(recipe, alignment=replace(alignment, sensitivities=found))
        with timed(home, recipe) as done:
            finished = quantize_model(
                source,
                quantizer,
                recipe,
                calibration=calibration_text,
                evaluation=evaluation_text,
                outputs=outputs,
                progress=progress,
                table=table,
                on_sensitivities=lambda measured: (
                    write_file(sensitivities, sensitivities_to_json(measured))
                    if sensitivities is not None and found is None
                    else None
                ),
            )
            done.extend(each.facts for each in finished)
    if as_json:
        console.print_json({"models": [_result(each) for each in finished]})
    else:
        console.print_finished(finished)


def _is_aligned(
    method: str, *, of_alignment: Mapping[str, bool], of_fisher: Mapping[str, bool]
) -> bool:
    """Whether `--method` is the seed's; the options that were passed must go with it."""
    options = {"fisher": of_alignment, "alignment": of_fisher}
    if method not in options:
        raise InvalidOptionError(f"There is no method '{method}'. Choose fisher or alignment.")
    other = "alignment" if method == "fisher" else "fisher"
    if passed := [name for name, is_passed in options[method].items() if is_passed]:
        raise InvalidOptionError(
            f"{' and '.join(passed)} cannot be used with --method {method}, "
            f"only with --method {other}."
        )
    return method == "alignment"


def evaluate(
    folder: Annotated[Path, typer.Argument(help="A folder that dynquant or mlx-lm wrote.")],
    reference: Annotated[str, typer.Option(help="The original: a folder or a Hub id.")],
    evaluation: Evaluation = DEFAULT_EVALUATION,
    eval_tokens: EvaluationTokens = DEFAULT_RECIPE.evaluation_tokens,
    as_json: Json = False,
) -> None:
    """Perplexity, KL divergence to the original and top-1 agreement, on held-out text."""
    from dynquant.cli.opening import evaluate_folder

    original, quality = evaluate_folder(
        folder,
        reference,
        evaluation,
        num_tokens=eval_tokens,
        progress=console.ConsoleProgress(),
    )
    if as_json:
        console.print_json({"original": asdict(original), "quantized": asdict(quality)})
    else:
        console.print_quality(
            [("Original", None, None, original), (folder.absolute().name, None, None, quality)]
        )


def _result(model: QuantizedModel) -> dict[str, Any]:
    rows = {row.label: asdict(row.quality) for row in model.facts.rows}
    return {
        "folder": str(model.folder),
        "stored_bpw": model.facts.plan.stored_bpw,
        "target_bpw": model.facts.plan.target_bpw,
        **rows["This model"],
        "sample": model.sample,
        "formats": formats_to_json(model.facts.plan),
        "report": report(model.facts),
    }
