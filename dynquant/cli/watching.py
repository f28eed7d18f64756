"""The commands of the watcher."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynquant.cli import console
from dynquant.cli.examples import epilog
from dynquant.cli.options import Json
from dynquant.errors import InvalidOptionError, ModelNotFoundError
from dynquant.model.candidate import Candidate
from dynquant.model.naming import repo_in
from dynquant.report.numbers import count
from dynquant.settings import Settings
from dynquant.watch.records import report_to_json
from dynquant.watch.rules import Decision
from dynquant.watch.skips import Skip

if TYPE_CHECKING:
    from dynquant.watch.inspecting import Look
    from dynquant.watch.service import WatchService
    from dynquant.watch.state import DatabaseWatchState

__all__ = ["explain", "pause", "resume", "watch", "watch_app"]

_NUM_REPORTS = 10

watch_app = typer.Typer(
    no_args_is_help=False, help="Convert new models on the Hub by the rules of a file."
)

Config = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="File with the rules.", envvar="DYNQUANT_WATCH_CONFIG"),
]


@watch_app.callback(invoke_without_command=True, epilog=epilog("watch"))
def watch(
    context: typer.Context,
    once: Annotated[bool, typer.Option("--once", help="Sweep now.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --once: queue nothing, explain every model.")
    ] = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Show the results of the last sweeps; with --once, sweep now."""
    if context.invoked_subcommand is not None:
        return
    if dry_run and not once:
        raise InvalidOptionError("--dry-run is for a sweep. Pass --once as well.")
    if not once:
        _show_status(as_json=as_json)
        return
    decisions: list[Decision] = []
    with _watch_service(config) as service:
        if dry_run:
            report = service.watcher().sweep(
                datetime.now(UTC), dry_run=True, on_decision=decisions.append
            )
        else:
            report = service.sweep_now()
    if as_json:
        explained = {"decisions": list(map(_decision_json, decisions))} if dry_run else {}
        console.print_json({"report": report_to_json(report), **explained})
    else:
        for decision in decisions:
            console.stdout.print(f"{_result(decision)}  {console.escaped(decision.repo_id)}")
        console.stdout.print(console.escaped(str(report)))


@watch_app.command(epilog=epilog("watch explain"))
def explain(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            parser=repo_in,
            help="Id of a model on the Hub, or the address of its page.",
        ),
    ],
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Explain which rule takes a model, or why it is skipped."""
    with _watch_service(config) as service:
        look = service.watcher().explain(model, datetime.now(UTC))
    if look.decision.skip is Skip.GONE:
        raise ModelNotFoundError(
            f"There is no model '{model}' on the Hub, or it is private. Check the spelling."
        )
    if as_json:
        console.print_json(_look_json(look))
        return
    decision = look.decision
    console.stdout.print(f"[bold]{console.escaped(decision.repo_id)}[/]: {decision.sentence}")
    if decision.targets_bpw:
        targets = ", ".join(f"{target:g}" for target in decision.targets_bpw)
        console.stdout.print(f"  It becomes {targets} bits per weight.")
    for rule, skip in decision.others:
        console.stdout.print(f"  Rule '{console.escaped(rule)}': {skip.sentence}")
    if look.candidate is not None:
        for name, value in _metadata(look.candidate).items():
            console.stdout.print(f"  {name}: {console.escaped(str(value))}")
    if look.seen is not None and look.seen.job_id:
        console.stdout.print(f"  It was queued as job {look.seen.job_id}.")


@watch_app.command()
def pause() -> None:
    """Pause the watcher: no sweep begins, and a running sweep stops."""
    with _state() as state:
        state.set_paused(True)
    console.stdout.print("The watcher is paused. 'dynquant watch resume' resumes it.")


@watch_app.command()
def resume() -> None:
    """Resume the watcher."""
    with _state() as state:
        state.set_paused(False)
    console.stdout.print("The watcher continues at the next time of its schedule.")


@contextmanager
def _watch_service(config: Path | None) -> Iterator[WatchService]:
    from dynquant.watch.service import WatchService  # the database's libraries take a second

    if config is None:
        raise InvalidOptionError(
            "The watcher needs rules. Pass --config FILE, or set DYNQUANT_WATCH_CONFIG; "
            "space_config/watch.yaml is an example."
        )
    with WatchService(Settings.from_environment(os.environ), config) as service:
        yield service


@contextmanager
def _state() -> Iterator[DatabaseWatchState]:
    from dynquant.watch.state import DatabaseWatchState

    state = DatabaseWatchState(Settings.from_environment(os.environ).database_url)
    try:
        yield state
    finally:
        state.close()


def _show_status(*, as_json: bool) -> None:
    with _state() as state:
        is_paused, reports = state.is_paused, state.reports(limit=_NUM_REPORTS)
    if as_json:
        console.print_json({"paused": is_paused, "reports": list(map(report_to_json, reports))})
        return
    console.stdout.print("The watcher is paused." if is_paused else "The watcher is not paused.")
    for report in reports:
        console.stdout.print(console.escaped(f"{report.started_at:%Y-%m-%d %H:%M} {report}"))
    if not reports:
        console.stdout.print("There has been no sweep yet. 'dynquant watch --once' begins a sweep.")


def _result(decision: Decision) -> str:
    if decision.skip is not None:
        return f"{decision.skip:<18}"
    return f"[green]{'taken by':<9}{console.escaped(decision.rule):<9}[/]"


def _decision_json(decision: Decision) -> dict[str, Any]:
    return {
        "model": decision.repo_id,
        "rule": decision.rule,
        "skip": decision.skip,
        "sentence": decision.sentence,
        "targets_bpw": list(decision.targets_bpw),
        "others": [
            {"rule": rule, "skip": skip, "sentence": skip.sentence}
            for rule, skip in decision.others
        ],
    }


def _look_json(look: Look) -> dict[str, Any]:
    return {
        **_decision_json(look.decision),
        "metadata": None if look.candidate is None else _metadata(look.candidate),
        "job_id": look.seen.job_id if look.seen is not None else "",
    }


def _metadata(candidate: Candidate) -> dict[str, Any]:
    """The fields of a model that rules look at."""
    parameters = candidate.num_parameters
    return {
        "commit": candidate.sha,
        "created": candidate.created_at.isoformat(),
        "parameters": "unknown" if parameters is None else count(parameters),
        "pipeline": candidate.pipeline_tag,
        "architectures": ", ".join((*candidate.architectures, candidate.model_type)),
        "license": candidate.license,
        "gated": candidate.gated,
        "likes": candidate.likes,
        "downloads": candidate.downloads,
        "trending": candidate.trending_score,
        "tags": ", ".join(candidate.tags),
    }
