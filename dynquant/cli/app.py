"""All commands together, and what becomes of errors."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from dynquant import __version__, console
from dynquant.cli import jobs, models, publishing, watching
from dynquant.errors import DynquantError

__all__ = ["app", "main"]

app = typer.Typer(
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

jobs_app = typer.Typer(no_args_is_help=True, help="What is queued, running and done.")
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
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


def main() -> None:
    """Entry point: our errors become one sentence on stderr and an exit code."""
    try:
        app()
    except DynquantError as error:
        console.stderr.print(f"[bold red]Error:[/] {console.escaped(str(error))}")
        if error.published:
            done = ", ".join(repo_id for repo_id, _ in error.published)
            console.stderr.print(f"Published before that: {console.escaped(done)}.")
        sys.exit(error.exit_code)
