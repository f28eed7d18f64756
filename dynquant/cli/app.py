"""All commands together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dynquant import __version__
from dynquant.cli import console, jobs, models, publishing, watching
from dynquant.cli.ending import CommandEnded
from dynquant.logs import log_to_terminal, secrets_in

__all__ = ["app"]


class _Commands(TyperGroup):
    """Passes on what typer would end the program for, each in its own way."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the options; `--help` prints here."""
        with _passed_on():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with _passed_on():
            return super().invoke(ctx)


@contextmanager
def _passed_on() -> Iterator[None]:
    """Pass on Ctrl-C, a reader that is gone, and a library that calls `sys.exit`."""
    try:
        yield
    except (BrokenPipeError, KeyboardInterrupt, SystemExit) as ending:
        raise CommandEnded from ending


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quantize language models with MLX to exactly the bits per weight (BPW) you ask for.",
)
command: Callable[..., None]
for command in (
    models.plan,
    models.measure,
    models.quantize,
    models.evaluate,
    publishing.convert,
    publishing.publish,
    publishing.card,
    jobs.submit,
    jobs.runner,
    jobs.doctor,
):
    app.command()(command)

jobs_app = typer.Typer(no_args_is_help=True, help="Show and steer jobs: queued, running and done.")
jobs_app.command("list")(jobs.list_jobs)
for command in (jobs.show, jobs.cancel, jobs.retry, jobs.logs):
    jobs_app.command()(command)
app.add_typer(jobs_app, name="jobs")
app.add_typer(watching.watch_app, name="watch")


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens.")] = False,
) -> None:
    if version:
        console.stdout.print(__version__)
        raise typer.Exit
    log_to_terminal(secrets=secrets_in(os.environ), verbose=verbose)
