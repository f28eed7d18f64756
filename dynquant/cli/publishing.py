"""The commands that publish: convert, publish, card."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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
    Private,
    Refine,
    Revision,
    Seed,
    TimeBudget,
    cost_table_in,
    menu_in,
    require_room,
    require_two_texts,
    targets_in,
)
from dynquant.convert import forecast
from dynquant.in_process import check, quantize
from dynquant.model.naming import check_repo_id, repo_ids
from dynquant.publish import PublishedModel, already_published, destinations, quant_access
from dynquant.publish import publish as publish_models
from dynquant.quant.recipe import Recipe
from dynquant.report.finished_files import CARD
from dynquant.report.finished_files import card as render
from dynquant.report.outputs import OutputFolders, finished_folders, read_facts, write_file
from dynquant.settings import Settings
from dynquant.texts.defaults import DEFAULT_CALIBRATION, DEFAULT_EVALUATION

__all__ = ["card", "convert", "publish"]

To = Annotated[
    str,
    typer.Option(help="Namespace, such as 'you', or repo id, such as 'you/{model}-{bpw}bpw-MLX'."),
]


def convert(
    model: Model,
    bpw: Bpw,
    to: To,
    private: Private = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the finished models, which stay there.")
    ] = Path("quants"),
    revision: Revision = None,
    formats: Formats = None,
    encoder: EncoderName = DEFAULT_RECIPE.encoder,
    effort: EffortName = DEFAULT_RECIPE.effort,
    refine: Refine = DEFAULT_RECIPE.refine,
    time_budget: TimeBudget = None,
    calibration: Calibration = DEFAULT_CALIBRATION,
    evaluation: Evaluation = DEFAULT_EVALUATION,
    cost_table: CostTableFile = None,
    calibration_tokens: CalibrationTokens = DEFAULT_RECIPE.calibration_tokens,
    eval_tokens: EvaluationTokens = DEFAULT_RECIPE.evaluation_tokens,
    context: Context = DEFAULT_RECIPE.context_tokens,
    seed: Seed = DEFAULT_RECIPE.seed,
    dequantize: Dequantize = False,
    as_json: Json = False,
) -> None:
    """From a model to published repos in one go: download, quantize, verify, publish.

    A quant that is published already, of the same commit and recipe, is not made again.
    """
    from dynquant.cli.opening import access_now, open_model, open_publisher, open_texts
    from dynquant.cli.speed import timed

    progress = console.ConsoleProgress()
    recipe = Recipe(
        targets_bpw=targets_in(bpw),
        menu=menu_in(formats),
        encoder=encoder,
        effort=effort,
        refine=refine,
        time_budget_mins=time_budget,
        calibration_tokens=calibration_tokens,
        evaluation_tokens=eval_tokens,
        context_tokens=context,
        seed=seed,
        dequantize=dequantize,
    )
    require_two_texts(calibration, evaluation)
    home = Settings.from_environment(os.environ).home
    outputs, table = OutputFolders(out), cost_table_in(cost_table)
    publisher = open_publisher()
    with open_model(model, revision=revision, headers_only=True, dequantize=dequantize) as (
        source,
        quantizer,
    ):
        forecast(source, quantizer, recipe)  # what cannot work is refused before the download
        ids = destinations(source, recipe, to, publisher, private=private)
        texts = open_texts()
        calibration_text, evaluation_text = texts.open(calibration), texts.open(evaluation)
        there = already_published(
            source, recipe, ids, publisher, calibration=calibration_text, evaluation=evaluation_text
        )
        if there is not None:
            _show(there, as_json=as_json)
            return
        found = check(source, quantizer, recipe, outputs=outputs, table=table)
        require_room(out, found)
    with (
        open_model(
            source.name if source.is_repo else model,
            revision=source.revision_sha or None,
            dequantize=dequantize,
            progress=progress,
        ) as (source, quantizer),
        timed(home, recipe) as done,
    ):
        finished = quantize(
            source,
            quantizer,
            recipe,
            calibration=calibration_text,
            evaluation=evaluation_text,
            outputs=outputs,
            progress=progress,
            table=table,
        )
        done.extend(each.facts for each in finished)
    if not as_json:
        console.print_finished(finished)
    _show(
        publish_models(
            {each.folder: each.facts for each in finished},
            ids,
            publisher,
            outputs=outputs,
            private=private,
            access_now=access_now,
            progress=progress,
        ),
        as_json=as_json,
    )


def publish(
    folder: Annotated[
        Path, typer.Argument(help="A finished model, or the folder above several of one ladder.")
    ],
    to: Annotated[
        str, typer.Argument(help="Namespace, such as 'you', or repo id, as for convert --to.")
    ],
    private: Private = None,
    as_json: Json = False,
) -> None:
    """Publish finished models, each in one commit; what is there already is left alone."""
    from dynquant.cli.opening import access_now, open_publisher, verify_finished

    models = {each: read_facts(each) for each in finished_folders(folder)}
    ids = repo_ids(
        to, {facts.name: (facts.source, facts.plan.target_bpw) for facts in models.values()}
    )
    publisher = open_publisher()
    for facts in models.values():  # before they are loaded, which may take minutes
        access = quant_access(facts.source_access, private=private)
        publisher.check(ids[facts.name], origin=facts.origin, access=access)
    for each, facts in models.items():
        verify_finished(each, facts)
    _show(
        publish_models(
            models,
            ids,
            publisher,
            outputs=OutputFolders(folder),
            private=private,
            access_now=access_now,
            progress=console.ConsoleProgress(),
        ),
        as_json=as_json,
    )


def card(
    folder: Annotated[Path, typer.Argument(help="A finished model.")],
    repo: Annotated[
        str | None, typer.Option(help="Repo that it is published as, for the examples.")
    ] = None,
) -> None:
    """Write the card of a finished model again, from its plan and its report."""
    if repo is not None:
        check_repo_id(repo)
    for each in finished_folders(folder):
        write_file(each / CARD, render(read_facts(each), repo_id=repo))
        console.stdout.print(f"Wrote {each / CARD}")


def _show(published: Sequence[PublishedModel], *, as_json: bool) -> None:
    if as_json:
        console.print_json({"published": [asdict(each) for each in published]})
    else:
        console.print_published(published)
