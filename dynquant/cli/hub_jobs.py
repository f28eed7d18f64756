"""`convert --on hub-jobs`: the price is shown and confirmed, and a Job of the Hub is followed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import typer
from rich.table import Table

from dynquant import __version__
from dynquant.cli import console
from dynquant.cli.conversion import ConversionOptions
from dynquant.cli.options import words_of
from dynquant.cli.rent_options import RentOptions
from dynquant.errors import HubJobEndedError, HubJobError, InvalidOptionError
from dynquant.hub.datasets import HubDatasets
from dynquant.hub.jobs import HubJobs
from dynquant.hub.models import HubModels
from dynquant.hub.publishing import HubPublisher
from dynquant.logs import Redactor, secrets_in
from dynquant.model.source import ModelSource
from dynquant.publish import PublishedModel, already_published, destinations, quant_access
from dynquant.quant.header_inventory import header_inventory
from dynquant.quant.plan import ModelInventory
from dynquant.quant.recipe import Recipe
from dynquant.rented.command import job_command, labels_of, pinned_requirement
from dynquant.rented.hardware import dollars
from dynquant.rented.job import RentedJob, Stage, why_it_ended
from dynquant.rented.needs import Needs, needs_of
from dynquant.rented.offer import Offer, offer_for
from dynquant.report.forecast import target_forecast
from dynquant.settings import Settings
from dynquant.texts.corpus import Corpus

__all__ = ["cancel", "convert_on_hub_jobs", "follow", "requirement"]

_MICRO = 10**6
_NAME = re.compile(r"(?:[\w.-]+/)?[\w-]+", re.ASCII)


def convert_on_hub_jobs(
    model: str,
    bpw: str,
    to: str,
    how: ConversionOptions,
    rent: RentOptions,
    *,
    private: bool | None,
    as_json: bool,
) -> None:
    """Convert a model in a Job of the Hub: look, refuse, show the price, ask, start, follow.

    Raises:
        RequestError: The request cannot work, or no Job can be started for it. Nothing was paid.
        HubJobEndedError: The Job ended before its conversion did.
    """
    installed = requirement()
    _require_remote(how)
    recipe, publisher, jobs = how.recipe(bpw), HubPublisher(), HubJobs()
    account = publisher.account()
    namespace = rent.namespace or account.name
    account.require_may_run_jobs(namespace)
    source, inventory = _looked_up(model, how, recipe)
    ids = destinations(source, recipe, to, publisher, private=private)
    texts = how.texts(Corpus(open_dataset=HubDatasets().open))
    if (there := already_published(source, recipe, ids, publisher, **texts)) is not None:
        _tell(None, there, as_json=as_json)
        return
    needs = needs_of(inventory, recipe)
    offer = _offer(needs, jobs, rent)
    access = "private" if quant_access(source.access, private=private).is_private else "public"
    _show(
        offer,
        {
            "model": f"{source.name} at {bpw} bits per weight",
            "published as": ", ".join(f"{each} ({access})" for each in ids.values()),
            "paid by": namespace,
            "runs": f"{installed}, with your token as the Job's secret",
        },
    )
    if not rent.yes:
        _ask()
        if _offer(needs, jobs, rent).worst_micro_usd > offer.worst_micro_usd:
            raise HubJobError(
                "The Hub's prices rose while you were asked, so nothing was started. Run the "
                "command again to see them."
            )
    words = ["convert", source.name, "--bpw", bpw, "--to", to]
    words += words_of(replace(how, revision=source.revision_sha))
    words += [] if private is None else ["--private" if private else "--public"]
    job, is_new = jobs.start(
        job_command(installed, words),
        flavor=offer.flavor.name,
        timeout_secs=offer.timeout_secs,
        labels=labels_of(installed, words),
        namespace=namespace,
    )
    _say(f"{'Started' if is_new else 'The same conversion runs already'}: {job.url}")
    ended = _followed(jobs, job)
    found = [publisher.published(repo_id) for repo_id in ids.values()]
    _tell(ended, [each[0] for each in found if each is not None], as_json=as_json)


def _looked_up(
    model: str, how: ConversionOptions, recipe: Recipe
) -> tuple[ModelSource, ModelInventory]:
    """A model of the Hub and its layers, from its headers.

    Raises:
        InvalidOptionError: It is a folder of this machine.
        InfeasibleTargetError: No choice of formats meets a target.
    """
    with HubModels() as hub:
        source = hub.fetch_headers(model, revision=how.revision, allow_quantized=how.dequantize)
        if not source.is_repo:
            raise InvalidOptionError(
                "A Job of the Hub cannot read a folder of this machine. Upload the model to the "
                "Hub, in a private repo if need be, and pass its id."
            )
        inventory = header_inventory(source).inventory.within(recipe.menu)
    # The headers count a tower as it is; another one is left to the Job to refuse.
    for target in recipe.targets_bpw if recipe.tower == "keep" else ():
        target_forecast(
            inventory,
            target,
            context_tokens=recipe.context_tokens,
            cache_bytes_per_token=None,
            measured=(),
        )
    return source, inventory


def _offer(needs: Needs, jobs: HubJobs, rent: RentOptions) -> Offer:
    """The machine for a conversion, at the prices of now."""
    limit, minutes = rent.max_dollars, rent.timeout_mins
    return offer_for(
        needs,
        jobs.flavors(),
        name=rent.flavor,
        max_micro_usd=None if limit is None else int(limit * _MICRO),
        timeout_secs=None if minutes is None else 60 * minutes,
    )


def follow(name: str) -> None:
    """Show the log of a Job to its end.

    Args:
        name: `ID`, `ACCOUNT/ID`, or the address of its page.

    Raises:
        HubJobError: There is no such Job.
        HubJobEndedError: It ended before its conversion did.
    """
    jobs = HubJobs()
    _followed(jobs, jobs.look(_full(name)))


def cancel(name: str) -> None:
    """End a Job; `name` as for `follow`.

    Raises:
        HubJobError: There is no such Job.
    """
    jobs = HubJobs()
    job = jobs.look(_full(name))
    jobs.cancel(job)
    _say(f"The Job {job.name} {'was over already' if job.stage.is_over else 'is cancelled'}.")


def _followed(jobs: HubJobs, job: RentedJob) -> RentedJob:
    """The Job once it is over; Ctrl-C leaves it running.

    Raises:
        HubJobEndedError: It ended before its conversion did.
    """
    redact = Redactor(secrets_in(os.environ))
    try:
        for line in jobs.lines(job):
            _say(redact("".join(char if char.isprintable() else " " for char in line)))
        job = jobs.over(job)
    except BaseException:
        _say("The Job goes on without this command. To come back, or to end it:")
        _say(f"  dynquant convert --follow {job.name}")
        _say(f"  dynquant convert --cancel {job.name}")
        raise
    if job.stage is not Stage.COMPLETED:
        raise HubJobEndedError(why_it_ended(job))
    _say(f"The Job is done after {job.running_secs / 60:.0f} min on '{job.flavor}'.")
    return job


def _full(name: str) -> str:
    """`ACCOUNT/ID` of a Job."""
    short = "/".join(name.rstrip("/").split("/")[-2:]) if "://" in name else name
    if not _NAME.fullmatch(short):
        raise InvalidOptionError(
            f"'{name[:100]}' is no Job. Pass its id, 'ACCOUNT/ID', or the address of its page."
        )
    return short if "/" in short else f"{HubPublisher().account().name}/{short}"


def requirement() -> str:
    """The dynquant that a Job installs.

    Raises:
        InvalidOptionError: It cannot be pinned.
    """
    try:
        installed_from = distribution("dynquant").read_text("direct_url.json")
    except PackageNotFoundError:  # a folder of sources, as on a Space
        installed_from = '{"url": ""}'
    return pinned_requirement(
        __version__,
        installed_from=installed_from,
        chosen=Settings.from_environment(os.environ).hub_jobs_source,
    )


def _require_remote(how: ConversionOptions) -> None:
    """Refuse texts and files of this machine, which a Job cannot read.

    Raises:
        InvalidOptionError: An option names one.
    """
    named = {
        "--calibration": how.calibration,
        "--eval": how.evaluation,
        "--calibration-images": how.calibration_images,
        "--eval-images": how.evaluation_images,
        "--cost-table": how.cost_table,
    }
    for option, value in named.items():
        if value is not None and (option == "--cost-table" or Path(value).exists()):
            raise InvalidOptionError(
                f"A Job of the Hub cannot read the files of this machine: leave {option} out, or "
                "name a dataset of the Hub."
            )


def _show(offer: Offer, about: Mapping[str, str]) -> None:
    flavor, minutes = offer.flavor, offer.timeout_secs / 60
    table = Table(show_header=False, box=None)
    rows = {
        **about,
        "hardware": f"{flavor.name}: {flavor.gpu} with {flavor.gpu_bytes / 1e9:.0f} GB",
        "time": f"roughly {offer.expected_secs / 60:.0f} min; the Hub ends it after {minutes:.0f}",
        "price": f"roughly {dollars(offer.expected_micro_usd)}, at most "
        f"{dollars(offer.worst_micro_usd)}",
    }
    for name, value in rows.items():
        table.add_row(name, console.escaped(value))
    console.stderr.print(table)


def _ask() -> None:
    """Ask whether to start.

    Raises:
        InvalidOptionError: There is no terminal to ask on.
        KeyboardInterrupt: Ctrl-C in place of an answer.
        typer.Exit: The answer is no.
    """
    try:
        agreed = typer.confirm("Start this Job?", err=True)
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        raise InvalidOptionError(
            "Nothing was started: there is no terminal to ask on. Pass --yes, and --max-dollars."
        ) from error
    if not agreed:
        _say("Nothing was started.")
        raise typer.Exit(code=2)


def _tell(job: RentedJob | None, published: Sequence[PublishedModel], *, as_json: bool) -> None:
    """The result: the Job, if there was one, and the repos."""
    if as_json:
        found = [asdict(each) for each in published]
        console.print_json({"job": job and job.to_json(), "published": found})
    else:
        console.print_published(published)


def _say(line: str) -> None:
    console.stderr.print(line, markup=False, highlight=False)
