"""Options of `convert` for Jobs of the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dynquant.cli.options import words_of
from dynquant.errors import InvalidOptionError

__all__ = ["HUB_JOBS", "RentOptions"]

THIS_MACHINE, HUB_JOBS = "this-machine", "hub-jobs"


def _follow(name: str | None) -> None:
    if name is not None:
        from dynquant.cli.hub_jobs import follow  # huggingface_hub takes a while to import

        follow(name)
        raise typer.Exit


def _cancel(name: str | None) -> None:
    if name is not None:
        from dynquant.cli.hub_jobs import cancel

        cancel(name)
        raise typer.Exit


@dataclass(frozen=True, kw_only=True)
class RentOptions:
    """Where a conversion runs, and what may be paid for it.

    Raises:
        InvalidOptionError: An option for Jobs, and the conversion runs on this machine.
    """

    on: Annotated[
        str,
        typer.Option(
            metavar="this-machine|hub-jobs", help="hub-jobs is a machine that the Hub rents to you."
        ),
    ] = THIS_MACHINE
    max_dollars: Annotated[
        float | None,
        typer.Option(
            metavar="DOLLARS", min=0, help="Most to pay for the Job, counted at its timeout."
        ),
    ] = None
    timeout_mins: Annotated[
        int | None,
        typer.Option(metavar="MINUTES", min=1, help="Time after which the Hub ends the Job."),
    ] = None
    flavor: Annotated[
        str | None,
        typer.Option(metavar="FLAVOR", help="Machine to rent, as 'hf jobs hardware' lists them."),
    ] = None
    namespace: Annotated[
        str | None,
        typer.Option(
            metavar="ACCOUNT", help="Account or organization that pays; yours by default."
        ),
    ] = None
    yes: Annotated[bool, typer.Option("--yes", help="Start the Job without asking.")] = False
    # Eager: these two need no model, and the rest of the command line is not read.
    follow: Annotated[
        str | None,
        typer.Option(
            metavar="JOB", is_eager=True, callback=_follow, help="Follow a Job that runs already."
        ),
    ] = None
    cancel: Annotated[
        str | None,
        typer.Option(metavar="JOB", is_eager=True, callback=_cancel, help="End a Job."),
    ] = None

    def __post_init__(self) -> None:
        if self.on not in {THIS_MACHINE, HUB_JOBS}:
            raise InvalidOptionError(f"--on must be {THIS_MACHINE} or {HUB_JOBS}, not '{self.on}'.")
        unused = words_of(self) if self.on == THIS_MACHINE else []
        if unused:
            raise InvalidOptionError(f"{unused[0]} is for Jobs of the Hub: add --on {HUB_JOBS}.")
