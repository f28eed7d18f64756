"""The watcher's interface: sweep the Hub, look at one model, explain a decision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from dynquant.hub.mentions import HubMentions
from dynquant.hub.new_models import HubNewModels
from dynquant.jobs.board import DatabaseBoard
from dynquant.model.candidate import Candidate
from dynquant.watch.config import WatchConfig
from dynquant.watch.inspecting import Inspector, Look
from dynquant.watch.mentions import open_discussions
from dynquant.watch.orders import Orders
from dynquant.watch.records import SweepReport
from dynquant.watch.rules import Decision
from dynquant.watch.state import DatabaseWatchState
from dynquant.watch.sweep import Sweep
from dynquant.watch.targets import MemoryFootprint

__all__ = ["Watcher"]

_EVER = datetime.min.replace(tzinfo=UTC)


def _ignore(_decision: Decision) -> None:
    pass


def _always() -> bool:
    return True


@dataclass(frozen=True)
class Watcher:
    """Sweeps the Hub for new models, and looks at single ones.

    Attributes:
        hub: The Hub's lists and models.
        board: The queue.
        state: Kept between sweeps.
        config: The rules.
        supports: Whether a `model_type` can be converted.
        footprint_of: Layers and cache of a model, for rules that name memory sizes; None uses
            an estimate. Raises RequestError for a model that cannot be converted.
        mentioner: Opens discussions; without it no rule opens discussions.
    """

    hub: HubNewModels
    board: DatabaseBoard
    state: DatabaseWatchState
    config: WatchConfig
    supports: Callable[[str], bool] = lambda _: True
    footprint_of: Callable[[Candidate], MemoryFootprint] | None = None
    mentioner: HubMentions | None = None

    def sweep(
        self,
        now: datetime,
        *,
        dry_run: bool = False,
        on_decision: Callable[[Decision], None] = _ignore,
        may_go_on: Callable[[], bool] = _always,
    ) -> SweepReport:
        """Queue the new models that rules take.

        Args:
            now: The time that ages are counted to.
            dry_run: Decide, and neither queue nor store anything.
            on_decision: Called once for every model.
            may_go_on: Called before every step that takes time or writes; False ends the sweep,
                and the next sweep finds the rest.

        Raises:
            RetryLaterError: The database does not answer. Errors of the Hub are in the report.
        """
        sweep = self._new_sweep(now, dry_run=dry_run, on_decision=on_decision, may_go_on=may_go_on)
        report = sweep.over_lists()
        if self.mentioner is not None and not dry_run:
            open_discussions(
                self.mentioner, self.board, self.state, self.config, may_go_on=may_go_on
            )
        return report

    def sweep_repo(
        self, repo_id: str, now: datetime, *, may_go_on: Callable[[], bool] = _always
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
        """The decision of the rules about a model, regardless of earlier decisions.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx.
        """
        look = self._inspector().look(repo_id, now=now, since=_EVER, recall=lambda _: None)
        return replace(look, seen=self.state.seen(look.decision.repo_id))

    def _inspector(self) -> Inspector:
        return Inspector(
            hub=self.hub,
            config=self.config,
            supports=self.supports,
            footprint_of=self.footprint_of,
        )

    def _new_sweep(
        self,
        now: datetime,
        *,
        dry_run: bool,
        on_decision: Callable[[Decision], None],
        may_go_on: Callable[[], bool],
    ) -> Sweep:
        return Sweep(
            hub=self.hub,
            state=self.state,
            config=self.config,
            inspector=self._inspector(),
            orders=Orders(board=self.board, state=self.state, config=self.config, dry_run=dry_run),
            now=now,
            dry_run=dry_run,
            on_decision=on_decision,
            may_go_on=may_go_on,
        )
