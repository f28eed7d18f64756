"""The program `dynquant`: all commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dynquant import __version__
from dynquant.cli import console, jobs, models, planning, publishing, watching
from dynquant.cli.ending import CommandEnded
from dynquant.cli.examples import epilog
from dynquant.logs import log_to_terminal, secrets_in
from dynquant.settings import unknown_variables

__all__ = ["app"]


class _Commands(TyperGroup):
    """Passes on exceptions that typer would turn into an exit of its own."""

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
    """Pass on Ctrl-C, a closed pipe, and a library's call of `sys.exit`."""
    try:
        yield
    except (BrokenPipeError, KeyboardInterrupt, SystemExit) as ending:
        raise CommandEnded from ending


_WIDE = {"max_content_width": 100, "help_option_names": ["-h", "--help"]}

app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    context_settings=_WIDE,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Quantize language models with MLX to exactly the bits per weight (BPW) you ask for.",
)
command: Callable[..., None]
for command in (
    planning.plan,
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
    app.command(epilog=epilog(command.__name__))(command)

jobs_app = typer.Typer(no_args_is_help=True, help="Show and steer jobs: queued, running and done.")
jobs_app.command("list", epilog=epilog("jobs list"))(jobs.list_jobs)
for command in (jobs.show, jobs.cancel, jobs.retry, jobs.logs):
    jobs_app.command(epilog=epilog(f"jobs {command.__name__}"))(command)
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
    for sentence in unknown_variables(os.environ):
        console.stderr.print(f"[bold yellow]Warning:[/] {console.escaped(sentence)}")
