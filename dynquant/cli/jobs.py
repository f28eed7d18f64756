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
    DEFAULT_RECIPE,
    Bpw,
    Dequantize,
    EffortName,
    Formats,
    Json,
    Model,
    Private,
    Refine,
    Revision,
    TimeBudget,
    require_two_texts,
    targets_in,
)
from dynquant.errors import InvalidOptionError, RequestError
from dynquant.jobs.job import TERMINAL, Job, JobState
from dynquant.jobs.job_text import job_to_text
from dynquant.jobs.ports import JobBoard
from dynquant.jobs.request import JobRequest, check_notify_url
from dynquant.model.naming import local_name, quantized_name, repo_ids
from dynquant.quant.options import RecipeOptions
from dynquant.quant.recipe import RECIPE_VERSION
from dynquant.settings import Settings, user_name
from dynquant.texts.corpus import Corpus
from dynquant.texts.defaults import DEFAULT_CALIBRATION, DEFAULT_EVALUATION

if TYPE_CHECKING:
    from dynquant.hub.models import HubModels

__all__ = ["cancel", "doctor", "list_jobs", "logs", "retry", "runner", "show", "submit"]

JobId = Annotated[str, typer.Argument(help="Id of the job, as 'dynquant jobs list' shows it.")]


def runner() -> None:
    """Take jobs from the queue and do them, and watch the Hub if there are rules for it.

    Ctrl-C or SIGTERM ends it; what runs then goes on where it was with the next runner.
    """
    from dynquant.runner.service import serve

    settings = Settings.from_environment(os.environ)
    if settings.watch_config is None:
        serve(settings)
        return
    from dynquant.watch.service import WatchService

    with WatchService(settings, settings.watch_config) as tower:
        tower.rules()  # a mistake in the file is found at the start
        serve(settings, watch=tower)


def submit(
    model: Model,
    bpw: Bpw,
    to: Annotated[str, typer.Option(help="Namespace or repo id, as for 'dynquant convert'.")],
    private: Private = None,
    revision: Revision = None,
    formats: Formats = None,
    calibration: Annotated[
        str | None, typer.Option(help="Dataset to calibrate on, instead of the default.")
    ] = None,
    evaluation: Annotated[
        str | None, typer.Option("--eval", help="Held-out dataset, instead of the default.")
    ] = None,
    notify: Annotated[
        str | None, typer.Option(help="Web address to tell when the job ends.")
    ] = None,
    effort: EffortName = DEFAULT_RECIPE.effort,
    refine: Refine = DEFAULT_RECIPE.refine,
    time_budget: TimeBudget = None,
    dequantize: Dequantize = False,
    as_json: Json = False,
) -> None:
    """Queue a model for a runner; the same request again is the same job."""
    from dynquant.hub.models import HubModels

    targets = targets_in(bpw)
    _check_texts(calibration, evaluation)
    named = {"menu": formats, "calibration": calibration, "evaluation": evaluation}
    options = RecipeOptions.model_validate(
        {
            "effort": effort,
            "refine": refine,
            "time_budget_mins": time_budget,
            "dequantize": dequantize,
            **{name: value for name, value in named.items() if value is not None},
        }
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
        repo, commit = _on_hub(hub, model, revision)
        listing = hub.look_up(repo, revision=commit, allow_quantized=dequantize)
    repo_ids(to, {quantized_name(listing.repo, each): (listing.repo, each) for each in targets})
    with _board() as board:
        job = board.submit(
            replace(request, model=listing.repo),
            revision_sha=listing.sha,
            source_is_private=listing.is_private,
            recipe_version=RECIPE_VERSION,
        )
    if as_json:
        console.print_json({"job": _json(job)})
    else:
        console.print_job(job)
    if notify is not None and job.request.notify_url != notify:
        console.stderr.print(
            "This job was asked for before; the address that was given then is notified of its end."
            if job.request.notify_url
            else "This job was asked for before, without --notify, so no address is notified."
        )


def _check_texts(calibration: str | None, evaluation: str | None) -> None:
    """Refuse texts that a runner with the settings of this machine would refuse.

    Raises:
        TextError: They are the same, or one cannot be used.
        HubUnavailableError: A dataset cannot be reached.
    """
    from dynquant.hub.datasets import HubDatasets

    require_two_texts(calibration or DEFAULT_CALIBRATION, evaluation or DEFAULT_EVALUATION)
    allow_files = Settings.from_environment(os.environ).local_texts
    texts = Corpus(open_dataset=HubDatasets().open, allow_files=allow_files)
    for source in filter(None, (calibration, evaluation)):
        texts.open(source)


def _on_hub(hub: HubModels, model: str, revision: str | None) -> tuple[str, str | None]:
    """Repo and revision of `model`, which may be a folder of the cache; see `local_source`.

    Raises:
        RequestError: It is another folder of this machine.
    """
    if not model.startswith((".", "/", "~")) and model.count("/") <= 1:
        return model, revision
    source = hub.fetch_headers(model, revision=revision)  # a folder needs none
    if not source.is_repo:
        raise RequestError(
            f"Runners take models from the Hub, and '{model}' is a folder of this machine. Convert "
            "it here with 'dynquant convert', or upload it and pass its id."
        )
    return source.name, source.revision_sha


def list_jobs(
    state: Annotated[
        str | None, typer.Option(help="Only jobs in this state, such as waiting or failed.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 100,
    as_json: Json = False,
) -> None:
    """Jobs, the latest first."""
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
    """One job: how far it is, or how it ended, with its earlier attempts."""
    with _board() as board:
        job = board.get(job_id)
    if as_json:
        console.print_json({"job": _json(job)})
    else:
        console.print_job(job)


def cancel(job_id: JobId) -> None:
    """Do not do a job, or stop doing it."""
    with _board() as board:
        console.print_job(board.cancel(job_id))


def retry(job_id: JobId) -> None:
    """Try a job again that was refused, failed or was cancelled."""
    with _board() as board:
        console.print_job(board.retry(job_id))


def logs(
    job_id: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends.")
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


def doctor(as_json: Json = False) -> None:
    """Say what a runner on this machine has, and what to do where something is missing."""
    from dynquant.runner.doctor import examine

    findings = examine(os.environ)
    if as_json:
        console.print_json({"findings": [asdict(found) for found in findings]})
    else:
        console.print_findings(findings)
    if not all(found.good for found in findings):
        raise typer.Exit(code=2)


def _json(job: Job) -> dict[str, Any]:
    from dynquant.runner.notify import host_of

    shown = json.loads(job_to_text(job)) | {"position": job.position, "eta_secs": job.eta_secs}
    if job.request.notify_url is not None:
        # Of the address to notify only the host: the rest may be a secret.
        shown["request"]["notify_url"] = host_of(job.request.notify_url)
    return shown


@contextmanager
def _board() -> Iterator[JobBoard]:
    """The jobs of this machine, or of the database that DYNQUANT_DATABASE_URL names."""
    from dynquant.hub.published import HubRepos
    from dynquant.jobs.board import DatabaseBoard  # the database's libraries take a second

    settings = Settings.from_environment(os.environ)
    board = DatabaseBoard(
        settings.database_url, daily_limit=settings.daily_limit, published=HubRepos()
    )
    try:
        yield board
    finally:
        board.close()
