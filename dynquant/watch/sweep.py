"""One sweep: read the Hub's lists, decide, queue; in an order in which a crash loses nothing.

The lists are read back to where the last sweep began, and a little further. A model that the rules
do not exclude by its list entry is looked at closely. An order is stored first, then queued under
an id made from its content; the position in the lists is stored at the very end. So the sweep
after a crash reads the lists again and finds the orders of the first one.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial

from dynquant.errors import HubUnavailableError, ModelNotFoundError, RetryLaterError
from dynquant.hub.new_models import HubNewModels, ListOrder
from dynquant.model.candidate import Candidate
from dynquant.watch.config import WatchConfig
from dynquant.watch.inspecting import Inspector, Look
from dynquant.watch.orders import Orders
from dynquant.watch.records import Cursor, PostponedModel, SeenModel, SweepReport
from dynquant.watch.rules import Decision, decide, may_cover
from dynquant.watch.skips import Skip
from dynquant.watch.state import DatabaseWatchState

__all__ = ["Sweep"]

_OVERLAP = timedelta(hours=1)
"""Read again with every sweep: a new upload can take a while to appear in the lists."""

_MAX_LISTED = 50_000
"""Models of one list in one sweep: some ten days of uploads to the whole Hub."""
_MAX_CLOSE = 150
"""Close looks in one sweep, of some two requests each. The Hub answers 500 requests in 5 minutes
without a token, and more with one."""
_MAX_DUE = 100
_MAX_FAILURES = 3
"""Models in a row about which the Hub does not answer, before it counts as unavailable."""

_FIRST_WAIT = timedelta(hours=1)
_WAIT_SHARE = 0.5
"""Pause before the next look over the time since the first; a month takes some fifteen looks."""
_LONGEST_WAIT = timedelta(days=30)
_AT_ONCE = frozenset({Skip.SWEEP_LIMIT, Skip.CALL_LIMIT})

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Reading:
    """The part of a list that was read: from its newest model back to the oldest."""

    newest: datetime
    oldest: datetime


class _EndedError(Exception):
    """The sweep has to end."""


@dataclass(slots=True, kw_only=True)
class Sweep:
    """One sweep, to be run once.

    Attributes:
        hub: Where new models are.
        state: Kept between sweeps.
        config: The rules.
        inspector: Looks at single models.
        orders: Queues.
        now: The time that ages are counted to.
        dry_run: Decide, and neither queue nor store anything.
        on_decision: Called once for every model.
        may_go_on: Called before every step that takes time or writes; False ends the sweep.
    """

    hub: HubNewModels
    state: DatabaseWatchState
    config: WatchConfig
    inspector: Inspector
    orders: Orders
    now: datetime
    dry_run: bool
    on_decision: Callable[[Decision], None]
    may_go_on: Callable[[], bool]
    _since: datetime = field(init=False)
    _matches: list[Look] = field(init=False, default_factory=list)
    _looked_at: set[str] = field(init=False, default_factory=set)
    _num_seen: int = field(init=False, default=0)
    _num_matched: int = field(init=False, default=0)
    _queued: list[str] = field(init=False, default_factory=list)
    _skipped: Counter[Skip] = field(init=False, default_factory=Counter)
    _num_close: int = field(init=False, default=0)
    _num_failures: int = field(init=False, default=0)
    _sentence: str = field(init=False, default="")

    def over_lists(self) -> SweepReport:
        """Look at all new models, and at the postponed ones that are due.

        Raises:
            RetryLaterError: The database does not answer.
        """
        return self._reported(self._look_at_lists)

    def over_repo(self, repo_id: str) -> SweepReport:
        """Look at one model alone.

        Raises:
            RetryLaterError: The database does not answer.
        """
        return self._reported(lambda: self._look_at_repo(repo_id))

    def _reported(self, look: Callable[[], Cursor | None]) -> SweepReport:
        began, num_calls = time.monotonic(), self.hub.num_calls
        try:
            self._do(look)
        except _EndedError:
            self._sentence = "It was paused or stopped, or another runner has taken over."
        report = SweepReport(
            started_at=self.now,
            secs=time.monotonic() - began,
            num_seen=self._num_seen,
            num_matched=self._num_matched,
            queued=tuple(self._queued),
            skipped=dict(self._skipped),
            num_calls=self.hub.num_calls - num_calls,
            is_dry_run=self.dry_run,
            sentence=self._sentence,
        )
        if not self.dry_run:
            self.state.add_report(report)
        _logger.info("%s", report)
        return report

    def _do(self, look: Callable[[], Cursor | None]) -> None:
        cursor = None
        try:
            if not self.dry_run:
                self._require_turn()
                self._queued += self.orders.finish()
            try:
                cursor = look()
            # Matches found before the error are queued all the same. The Hub answers 404 for a
            # list if it does not accept the token.
            except (HubUnavailableError, ModelNotFoundError) as error:
                self._sentence = str(error)
            self._place_all()
        except RetryLaterError as error:
            cursor, self._sentence = None, str(error)
        if cursor is not None and not self.dry_run:
            self.state.save_cursor(cursor)

    # Looking.

    def _look_at_repo(self, repo_id: str) -> None:
        self._since = self._watching_since(self.state.cursor())
        if may_cover(repo_id, self.config):
            self._look_closely(repo_id)
        else:
            self._settle(Decision(repo_id=repo_id, skip=Skip.NOT_COVERED))

    def _look_at_lists(self) -> Cursor | None:
        """The position at which the next sweep begins; None if the Hub has no models."""
        cursor = self.state.cursor()
        self._since = self._watching_since(cursor)
        for model in self.state.due(self.now, limit=_MAX_DUE):
            self._look_closely(model.repo_id)
        modified = self._read("lastModified", cursor.modified - _OVERLAP if cursor else None)
        if modified is None:
            return cursor
        # Every new model is also a changed one; this list adds models that the first list lacks.
        created = self._read(
            "createdAt",
            cursor.created - _OVERLAP if cursor else self._since,
            changed_before=modified.oldest,
        )
        newest = created.newest if created is not None else modified.newest
        return Cursor(
            since=self._since,
            modified=max(modified.newest, cursor.modified) if cursor else modified.newest,
            created=max(newest, cursor.created) if cursor else newest,
        )

    def _watching_since(self, cursor: Cursor | None) -> datetime:
        return cursor.since if cursor else self.now - self._look_back

    @property
    def _look_back(self) -> timedelta:
        return timedelta(hours=self.config.look_back_hours)

    def _read(
        self,
        order: ListOrder,
        start: datetime | None,
        *,
        changed_before: datetime | None = None,
    ) -> _Reading | None:
        """Look at a list back to `start`; None if it is empty.

        Args:
            order: The list.
            start: None goes back some hours from the newest model, which is right also if the Hub's
                clock is behind ours.
            changed_before: Models that changed since are skipped: the other list has them.
        """
        newest = oldest = None
        for number, candidate in enumerate(self.hub.listed(order)):
            at = candidate.created_at if order == "createdAt" else candidate.last_modified
            # With a date in the future the next sweep would skip all models before that date.
            newest = newest or min(at, self.now)
            if start is None:
                start = self._since = newest - self._look_back
            if at < start:
                break
            if number == _MAX_LISTED:
                self._sentence = (
                    f"More than {_MAX_LISTED:,} models are new; those from before {at:%d %B %H:%M} "
                    "were skipped. Sweep more often, or submit them by hand."
                )
                break
            oldest = at
            if changed_before is None or candidate.last_modified < changed_before:
                self._consider(candidate)
        return None if newest is None else _Reading(newest, oldest or newest)

    def _consider(self, candidate: Candidate) -> None:
        """Look at a model closely unless its list entry or the state decides already."""
        repo_id = candidate.repo_id
        if repo_id in self._looked_at:
            return
        decision = decide(candidate, self.config, now=self.now)
        if decision.skip is None:
            seen = self.state.seen(repo_id)
            if seen is not None and seen.sha == candidate.sha:
                decision = decision.skipped(Skip.UNCHANGED)
            elif self._num_close >= _MAX_CLOSE:
                decision = decision.skipped(Skip.CALL_LIMIT)
        if decision.skip is None:
            self._look_closely(repo_id)
            return
        if decision.skip.may_pass:
            self._postpone(decision)
        else:
            self._settle(decision)

    def _look_closely(self, repo_id: str) -> None:
        self._require_turn()
        self._num_close += 1
        self._looked_at.add(repo_id)
        try:
            look = self.inspector.look(
                repo_id, now=self.now, since=self._since, recall=self.state.seen
            )
        except HubUnavailableError:
            self._num_failures += 1
            if self._num_failures == _MAX_FAILURES:  # the Hub is away, for every model
                raise
            self._postpone(Decision(repo_id=repo_id, skip=Skip.NO_ANSWER))
            return
        self._num_failures = 0
        name = look.decision.repo_id
        self._looked_at.add(name)
        if look.candidate is None or name != repo_id:  # gone, or renamed
            self._write(lambda: self.state.forget(repo_id))
        if look.decision.skip is None:
            self._num_matched += 1
            self._matches.append(look)
        else:
            self._keep(look)
            self._settle(look.decision)

    # Queueing.

    def _place_all(self) -> None:
        for look in sorted(self._matches, key=self.orders.sort_key):
            self._require_turn()
            skip = self.orders.place(look)
            if skip is not None:
                look = replace(look, decision=look.decision.skipped(skip))  # noqa: PLW2901
                self._keep(look)
            else:
                self._queued.append(look.decision.repo_id)
            self._settle(look.decision)

    # Storing.

    def _postpone(self, decision: Decision) -> None:
        """Look at a model again later that was not looked at closely."""
        again = self._postponed(decision)
        self._write(
            partial(self.state.forget, decision.repo_id)
            if again is None
            else partial(self.state.postpone, again)
        )
        self._settle(decision)

    def _keep(self, look: Look) -> None:
        """Store why a model was skipped, and when to look again if the reason may pass."""
        candidate, seen, skip = look.candidate, look.seen, look.decision.skip
        if candidate is None or skip is None:
            return
        if skip is Skip.UNCHANGED:
            self._write(lambda: self.state.forget(candidate.repo_id))
            return
        kept = SeenModel(
            repo_id=candidate.repo_id,
            sha=candidate.sha,
            fingerprint=candidate.fingerprint,
            skip=skip,
        )
        if seen is not None and seen.job_id:
            kept = replace(kept, fingerprint=seen.fingerprint, job_id=seen.job_id)
        again = self._postponed(look.decision) if skip.may_pass else None
        self._write(lambda: self.state.remember(kept, again=again))

    def _postponed(self, decision: Decision) -> PostponedModel | None:
        """When to look again: at growing intervals, and not after a month."""
        before = self.state.postponed(decision.repo_id)
        if before is not None and before.due > self.now:
            return before
        since = before.since if before is not None else self.now
        last = since + _LONGEST_WAIT
        if self.now >= last:
            return None
        pause = max(_FIRST_WAIT, (self.now - since) * _WAIT_SHARE)
        due = self.now if decision.skip in _AT_ONCE else min(self.now + pause, last)
        return PostponedModel(repo_id=decision.repo_id, due=due, since=since)

    def _settle(self, decision: Decision) -> None:
        self._num_seen += 1
        if decision.skip is not None:
            self._skipped[decision.skip] += 1
        self.on_decision(decision)

    def _write(self, write: Callable[[], None]) -> None:
        if not self.dry_run:
            write()

    def _require_turn(self) -> None:
        if not self.may_go_on():
            raise _EndedError
