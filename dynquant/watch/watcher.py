"""The watcher as its callers see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from dynquant.jobs.ports import JobBoard
from dynquant.model.candidate import Candidate
from dynquant.watch.inspecting import Inspector, Look
from dynquant.watch.mentions import Mentions
from dynquant.watch.orders import Orders
from dynquant.watch.ports import Mentioner, NewModels, WatchState
from dynquant.watch.records import SweepReport
from dynquant.watch.rules import Decision, WatchConfig, may_cover
from dynquant.watch.sweep import Sweep
from dynquant.watch.targets import MemoryFootprint

__all__ = ["Watcher"]

_EVER = datetime.min.replace(tzinfo=UTC)


def _ignore(_decision: Decision) -> None:
    pass


def _nobody_minds() -> bool:
    return True


class Watcher:
    """Sweeps the Hub for new models, and looks at single ones.

    Args:
        hub: Where new models are.
        board: Where jobs are queued.
        state: What is remembered between sweeps.
        config: The rules.
        supports: Says of a `model_type` whether it can be converted.
        footprint_of: Layers and cache of a model, for rules that name memory sizes; None uses
            an estimate. Raises RequestError for a model that cannot be converted.
        mentioner: Where authors are told; None tells nobody, whatever the rules say.
    """

    def __init__(
        self,
        hub: NewModels,
        board: JobBoard,
        state: WatchState,
        config: WatchConfig,
        *,
        supports: Callable[[str], bool] = lambda _: True,
        footprint_of: Callable[[Candidate], MemoryFootprint] | None = None,
        mentioner: Mentioner | None = None,
    ) -> None:
        self._hub = hub
        self._board = board
        self._state = state
        self._config = config
        self._mentioner = mentioner
        self._inspector = Inspector(hub, config, supports=supports, footprint_of=footprint_of)

    def sweep(
        self,
        now: datetime,
        *,
        dry_run: bool = False,
        on_decision: Callable[[Decision], None] = _ignore,
        may_go_on: Callable[[], bool] = _nobody_minds,
    ) -> SweepReport:
        """Queue what is new.

        Args:
            now: The time that ages are counted to.
            dry_run: Only say what would be done.
            on_decision: Told of every model, once.
            may_go_on: Asked before whatever takes time or is written; a sweep that may not go on
                ends, and the next one finds what is left.

        Raises:
            RetryLaterError: The database does not answer. What the Hub does is in the report.
        """
        sweep = self._new_sweep(now, dry_run=dry_run, on_decision=on_decision, may_go_on=may_go_on)
        report = sweep.over_lists()
        if self._mentioner is not None and not dry_run:
            Mentions(self._mentioner, self._board, self._state, self._config).do(may_go_on)
        return report

    def sweep_repo(
        self, repo_id: str, now: datetime, *, may_go_on: Callable[[], bool] = _nobody_minds
    ) -> SweepReport:
        """Queue one model if it is new, without waiting for a sweep to find it.

        Args:
            repo_id: The model.
            now: The time that ages are counted to.
            may_go_on: As for `sweep`.

        Raises:
            RetryLaterError: The database does not answer.
        """
        sweep = self._new_sweep(now, dry_run=False, on_decision=_ignore, may_go_on=may_go_on)
        return sweep.over_repo(repo_id)

    def explain(self, repo_id: str, now: datetime) -> Look:
        """What the rules make of a model, whatever was done with it before.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx.
        """
        look = self._inspector.look(repo_id, now=now, since=_EVER, recall=lambda _: None)
        return replace(look, known=self._state.known(look.decision.repo_id))

    def covers(self, repo_id: str) -> bool:
        """Whether some rule may speak of a repo of this name."""
        return may_cover(repo_id, self._config)

    def pause(self) -> None:
        """Sweep no more by schedule, until `resume`; a sweep that runs stops."""
        self._state.set_paused(True)

    def resume(self) -> None:
        """Sweep by schedule again."""
        self._state.set_paused(False)

    def _new_sweep(
        self,
        now: datetime,
        *,
        dry_run: bool,
        on_decision: Callable[[Decision], None],
        may_go_on: Callable[[], bool],
    ) -> Sweep:
        return Sweep(
            hub=self._hub,
            state=self._state,
            config=self._config,
            inspector=self._inspector,
            orders=Orders(self._board, self._state, self._config, dry_run=dry_run),
            now=now,
            dry_run=dry_run,
            on_decision=on_decision,
            may_go_on=may_go_on,
        )
