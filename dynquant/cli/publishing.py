"""The commands that publish: convert, publish, card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.conversion import ConversionOptions, quantize_timed
from dynquant.cli.options import Bpw, Json, Model, Private, require_room, with_option_records
from dynquant.cli.rent_options import HUB_JOBS, RentOptions
from dynquant.in_process import check
from dynquant.model.naming import check_repo_id, repo_ids
from dynquant.publish import (
    ModelPublisher,
    PublishedModel,
    already_published,
    destinations,
    quant_access,
)
from dynquant.publish import publish as publish_models
from dynquant.report.facts import ModelFacts
from dynquant.report.finished_files import CARD
from dynquant.report.finished_files import card as render
from dynquant.report.forecast import forecast
from dynquant.report.outputs import OutputFolders, finished_folders, read_facts, write_file

__all__ = ["card", "convert", "publish"]


@with_option_records
def convert(
    model: Model,
    bpw: Bpw,
    to: Annotated[
        str,
        typer.Option(
            metavar="DESTINATION",
            help="Namespace, such as 'you', or repo id, such as 'you/{model}-{bpw}bpw-MLX'.",
        ),
    ],
    how: ConversionOptions,
    rent: RentOptions,
    private: Private = None,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Folder for the finished models, which stay there."),
    ] = Path("quants"),
    as_json: Json = False,
) -> None:
    """Download, quantize, verify and publish a model in one go.

    A quant that is published already, of the same commit and recipe, is not made again.
    With --on hub-jobs all of it happens on a machine that the Hub rents to you.
    """
    if rent.on == HUB_JOBS:
        from dynquant.cli.hub_jobs import convert_on_hub_jobs

        convert_on_hub_jobs(model, bpw, to, how, rent, private=private, as_json=as_json)
        return
    from dynquant.cli.wiring import open_model, open_texts
    from dynquant.hub.publishing import HubPublisher

    recipe, outputs, table = how.recipe(bpw), OutputFolders(out), how.table()
    publisher = HubPublisher()
    opened = partial(open_model, dequantize=how.dequantize, dtype=how.dtype, tower=recipe.tower)
    with opened(model, revision=how.revision, headers_only=True) as (source, quantizer):
        forecast(source, quantizer, recipe)  # what cannot work is refused before the download
        ids = destinations(source, recipe, to, publisher, private=private)
        texts = how.texts(open_texts())
        there = already_published(source, recipe, ids, publisher, **texts)
        if there is not None:
            _show(there, as_json=as_json)
            return
        found = check(
            source, quantizer, recipe, outputs=outputs, table=table, has_images=how.has_images
        )
        require_room(out, found)
    with opened(
        source.name if source.is_repo else model,
        revision=source.revision_sha or None,
        progress=console.ConsoleProgress(),
    ) as (source, quantizer):
        finished = quantize_timed(
            source, quantizer, recipe, texts=texts, outputs=outputs, table=table
        )
    if not as_json:
        console.print_finished(finished)
    models = {each.folder: each.facts for each in finished}
    _show(_published(models, ids, publisher, outputs, private=private), as_json=as_json)


def publish(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="A finished model, or the folder above several sizes of a model."
        ),
    ],
    to: Annotated[
        str,
        typer.Argument(
            metavar="DESTINATION",
            help="Namespace, such as 'you', or repo id, as for convert --to.",
        ),
    ],
    private: Private = None,
    as_json: Json = False,
) -> None:
    """Publish finished models, each in one commit.

    A model that is published already is not changed.
    """
    from dynquant.cli.wiring import verify_finished
    from dynquant.hub.publishing import HubPublisher

    models = {each: read_facts(each) for each in finished_folders(folder)}
    ids = repo_ids(
        to, {facts.name: (facts.source, facts.plan.target_bpw) for facts in models.values()}
    )
    publisher = HubPublisher()
    for facts in models.values():  # before they are loaded, which may take minutes
        access = quant_access(facts.source_access, private=private)
        publisher.check(ids[facts.name], origin=facts.origin, access=access)
    for each, facts in models.items():
        verify_finished(each, facts)
    published = _published(models, ids, publisher, OutputFolders(folder), private=private)
    _show(published, as_json=as_json)


def card(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A finished model.")],
    repo: Annotated[
        str | None,
        typer.Option(metavar="REPO", help="Repo that it is published as, for the examples."),
    ] = None,
) -> None:
    """Write the card of a finished model again.

    It is made from the plan and the report in the folder.
    """
    if repo is not None:
        check_repo_id(repo)
    for each in finished_folders(folder):
        write_file(each / CARD, render(read_facts(each), repo_id=repo))
        console.stdout.print(f"Wrote {each / CARD}")


def _published(
    models: Mapping[Path, ModelFacts],
    ids: Mapping[str, str],
    publisher: ModelPublisher,
    outputs: OutputFolders,
    *,
    private: bool | None,
) -> list[PublishedModel]:
    from dynquant.cli.wiring import access_now

    return publish_models(
        models,
        ids,
        publisher,
        outputs=outputs,
        private=private,
        access_now=access_now,
        progress=console.ConsoleProgress(),
    )


def _show(published: Sequence[PublishedModel], *, as_json: bool) -> None:
    if as_json:
        console.print_json({"published": [asdict(each) for each in published]})
    else:
        console.print_published(published)
