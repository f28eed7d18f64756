"""The commands around durable jobs: runner, submit, jobs, doctor."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynquant.cli import console
from dynquant.cli.options import (
    Bpw,
    Json,
    Model,
    Private,
    WorkOptions,
    require_two_texts,
    targets_in,
    with_option_records,
)
from dynquant.errors import InvalidOptionError, RequestError
from dynquant.jobs.job import TERMINAL, Job, JobState
from dynquant.jobs.job_text import job_to_text
from dynquant.jobs.request import JobRequest, check_notify_url
from dynquant.jobs.served import served_queue
from dynquant.model.naming import local_name, quantized_name, repo_ids
from dynquant.quant.options import RecipeOptions
from dynquant.quant.recipe import RECIPE_VERSION
from dynquant.settings import Settings, user_name
from dynquant.texts.corpus import Corpus
from dynquant.texts.defaults import DEFAULT_CALIBRATION, DEFAULT_EVALUATION

if TYPE_CHECKING:
    from dynquant.hub.models import HubModels
    from dynquant.jobs.board import DatabaseBoard

__all__ = ["cancel", "doctor", "list_jobs", "logs", "retry", "runner", "show", "submit"]

_OTHER_ADDRESS = (
    "This job was requested before; the address that was given then is notified of its end."
)
_NO_ADDRESS = "This job was requested before, without --notify, so no address is notified."

JobId = Annotated[
    str, typer.Argument(metavar="JOB", help="Id of the job, as 'dynquant jobs list' shows it.")
]


def runner(
    until_idle: Annotated[
        float | None,
        typer.Option(metavar="MINUTES", min=0, help="Time without a job after which it ends."),
    ] = None,
    elastic: Annotated[
        bool,
        typer.Option("--elastic", help="Start runners on machines of the Hub while work waits."),
    ] = False,
) -> None:
    """Do the jobs of the queue, and watch the Hub by rules.

    Ctrl-C or SIGTERM ends it; the next runner continues the unfinished jobs.
    """
    from dynquant.runner.service import serve

    settings = Settings.from_environment(os.environ)
    if elastic:
        from dynquant.cli.hub_jobs import requirement
        from dynquant.runner.elastic import serve_elastic

        serve_elastic(settings, requirement=requirement())
        return
    if settings.watch_config is None:
        serve(settings, until_idle_mins=until_idle)
        return
    from dynquant.watch.service import WatchService

    with WatchService(settings, settings.watch_config) as watch:
        watch.rules()  # fails now if the file has an error
        serve(settings, watch=watch, until_idle_mins=until_idle)


@with_option_records
def submit(
    model: Model,
    bpw: Bpw,
    to: Annotated[
        str,
        typer.Option(
            metavar="DESTINATION", help="Namespace or repo id, as for 'dynquant convert'."
        ),
    ],
    how: WorkOptions,
    private: Private = None,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Dataset to calibrate on, instead of the default."),
    ] = None,
    evaluation: Annotated[
        str | None,
        typer.Option("--eval", metavar="TEXT", help="Held-out dataset, instead of the default."),
    ] = None,
    calibration_images: Annotated[
        str | None,
        typer.Option(metavar="IMAGES", help="Dataset of images to calibrate on beside the text."),
    ] = None,
    evaluation_images: Annotated[
        str | None,
        typer.Option("--eval-images", metavar="IMAGES", help="Dataset of images to ask about."),
    ] = None,
    notify: Annotated[
        str | None, typer.Option(metavar="URL", help="Web address to notify when the job ends.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Queue a model for a runner.

    The same request again is the same job.
    """
    from dynquant.hub.models import HubModels

    targets = targets_in(bpw)
    _check_texts(calibration, evaluation, calibration_images, evaluation_images)
    options = _recipe_options(
        how,
        calibration=calibration,
        evaluation=evaluation,
        calibration_images=calibration_images,
        evaluation_images=evaluation_images,
    )
    options.recipe(targets)  # a request that no runner could do is refused before it is queued
    request = JobRequest(
        model=model,
        targets_bpw=targets,
        destination=to,
        requester=local_name(user_name()),
        private=private is True,
        public=private is False,
        options=options,
        notify_url=notify,
    )
    check_notify_url(request)
    with HubModels(cache_dir=Settings.from_environment(os.environ).cache_dir) as hub:
        repo, commit = _on_hub(hub, model, how.revision)
        listing = hub.look_up(repo, revision=commit, allow_quantized=how.dequantize)
    repo_ids(to, {quantized_name(listing.repo, each): (listing.repo, each) for each in targets})
    with _board(may_be_served=False) as board:
        job = board.submit(
            replace(request, model=listing.repo),
            revision_sha=listing.sha,
            source_is_private=listing.is_private,
            recipe_version=RECIPE_VERSION,
        )
    _print(job, as_json=as_json)
    if notify is not None and job.request.notify_url != notify:
        console.stderr.print(_OTHER_ADDRESS if job.request.notify_url else _NO_ADDRESS)


def _recipe_options(how: WorkOptions, **texts: str | None) -> RecipeOptions:
    """The options that were passed; absent ones keep their defaults."""
    named = {"menu": how.formats, **texts}
    return RecipeOptions.model_validate(
        {
            "effort": how.effort,
            "distil": how.distil,
            "time_budget_mins": how.time_budget_mins,
            "dequantize": how.dequantize,
            "dtype": how.dtype,
            "tower": how.tower_choice,
            **{name: value for name, value in named.items() if value is not None},
        }
    )


def _check_texts(calibration: str | None, evaluation: str | None, *images: str | None) -> None:
    """Refuse texts and images that a runner with the settings of this machine would refuse.

    Raises:
        TextError: The texts are the same, or a text cannot be used.
        ImagesError: The images cannot be used.
        HubUnavailableError: A dataset cannot be reached.
    """
    from dynquant.hub.datasets import HubDatasets

    require_two_texts(calibration or DEFAULT_CALIBRATION, evaluation or DEFAULT_EVALUATION)
    allow_files = Settings.from_environment(os.environ).local_texts
    texts = Corpus(open_dataset=HubDatasets().open, allow_files=allow_files)
    for source in filter(None, (calibration, evaluation)):
        texts.open(source)
    for source in filter(None, images):
        texts.open_images(source)


def _on_hub(hub: HubModels, model: str, revision: str | None) -> tuple[str, str | None]:
    """Repo and revision of `model`, which may be a folder of the cache; see `local_source`.

    Raises:
        RequestError: `model` is a folder outside the cache.
    """
    if not model.startswith((".", "/", "~")) and model.count("/") <= 1:
        return model, revision
    source = hub.fetch_headers(model, revision=revision)  # nothing is fetched for a folder
    if not source.is_repo:
        raise RequestError(
            f"Runners take models from the Hub, and '{model}' is a folder of this machine. Convert "
            "it here with 'dynquant convert', or upload it and pass its id."
        )
    return source.name, source.revision_sha


def list_jobs(
    state: Annotated[
        str | None, typer.Option(metavar="|".join(JobState), help="Only jobs in this state.")
    ] = None,
    limit: Annotated[
        int,
        typer.Option(metavar="COUNT", min=1, max=10_000, help="Number of jobs to list at most."),
    ] = 100,
    as_json: Json = False,
) -> None:
    """List jobs, the latest first."""
    if state is not None and state not in set(JobState):
        raise InvalidOptionError(
            f"There is no state '{state}'. Take one of: {', '.join(JobState)}."
        )
    with _board() as board:
        jobs = board.list(states=() if state is None else (JobState(state),), limit=limit)
        runners = board.runners()
    if as_json:
        console.print_json({"jobs": [_json(job) for job in jobs]})
    else:
        console.print_jobs(jobs, runners)


def show(job_id: JobId, as_json: Json = False) -> None:
    """Show one job: its progress or result, and its earlier attempts."""
    with _board() as board:
        _print(board.get(job_id), as_json=as_json)


def cancel(job_id: JobId) -> None:
    """Cancel a job, whether it waits or runs."""
    with _board() as board:
        console.print_job(board.cancel(job_id))


def retry(job_id: JobId) -> None:
    """Retry a job that was refused, failed or was cancelled."""
    with _board() as board:
        console.print_job(board.retry(job_id))


def logs(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue until the job ends.")
    ] = False,
) -> None:
    """Print the history of a job."""
    with _board() as board:
        last = 0
        while True:
            is_over = board.get(job_id).state in TERMINAL
            for event in board.log(job_id, after=last):
                last = event.number
                console.stdout.print(
                    f"{event.at:%Y-%m-%d %H:%M:%S} {console.escaped(event.sentence)}"
                )
            if is_over or not follow:
                return
            time.sleep(1)


def doctor(
    measure_speed: Annotated[
        bool,
        typer.Option(
            "--measure-speed",
            help="Time the matrix products of all formats first (minutes), for the speed that "
            "'plan' shows.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Check whether a runner can work on this machine.

    Says what to do about each problem.
    """
    from dynquant.runner.doctor import examine

    if measure_speed:
        from dynquant.cli.kernels import measure_and_keep

        times = measure_and_keep(Settings.from_environment(os.environ).home)
        console.stderr.print(f"Timed on {times.machine}, MLX {times.mlx_version}.", markup=False)
    findings = examine(os.environ)
    if as_json:
        console.print_json({"findings": [asdict(found) for found in findings]})
    else:
        console.print_findings(findings)
    if not all(found.good for found in findings):
        raise typer.Exit(code=2)


def _print(job: Job, *, as_json: bool) -> None:
    if as_json:
        console.print_json({"job": _json(job)})
    else:
        console.print_job(job)


def _json(job: Job) -> dict[str, Any]:
    from dynquant.runner.notify import host_of

    shown = json.loads(job_to_text(job)) | {"position": job.position, "eta_secs": job.eta_secs}
    if job.request.notify_url is not None:
        # Only the host of the address: the rest may be a secret.
        shown["request"]["notify_url"] = host_of(job.request.notify_url)
    return shown


@contextmanager
def _board(*, may_be_served: bool = True) -> Iterator[DatabaseBoard]:
    """The jobs of this machine, or of the database that DYNQUANT_DATABASE_URL names.

    Args:
        may_be_served: Whether running pages with a queue of their own come first, where no variable
            names a queue. Their models are on another Hub, so new requests go elsewhere.
    """
    from dynquant.hub.published import HubRepos
    from dynquant.jobs.board import DatabaseBoard  # the database's libraries take a second

    settings = Settings.from_environment(os.environ)
    is_named = any(map(os.environ.get, ("DYNQUANT_HOME", "DYNQUANT_DATABASE_URL")))
    served = served_queue(settings.home) if may_be_served and not is_named else None
    if served is not None:
        console.stderr.print("[dim]The queue of the pages that 'make serve' runs:[/]")
    board = DatabaseBoard(
        served or settings.database_url, daily_limit=settings.daily_limit, published=HubRepos()
    )
    try:
        yield board
    finally:
        board.close()
