"""One sweep: read what is new, decide, queue; in this order, so that a crash loses nothing.

The lists are read back to where the last sweep began, and a little further. A model that passes
the rules by what a list says is looked at closely. What is to be queued is written down first,
then queued under an id made from its content, and only at the very end is it written down how
far the lists were read: whoever goes on after a crash reads them again and finds what was done.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

from dynquant.errors import HubUnavailableError, ModelNotFoundError, RetryLaterError
from dynquant.model.candidate import Candidate
from dynquant.watch.inspecting import Inspector, Look
from dynquant.watch.orders import Orders
from dynquant.watch.ports import NewModels, WatchState
from dynquant.watch.records import Cursor, PostponedModel, SeenModel, SweepReport
from dynquant.watch.rules import Decision, WatchConfig, decide, may_cover
from dynquant.watch.skips import Skip

__all__ = ["Sweep"]

_OVERLAP = timedelta(hours=1)
"""Read again with every sweep: what is uploaded can take a while to be listed."""

_MAX_LISTED = 50_000
"""Models of one list in one sweep: some ten days of uploads to the whole Hub."""
_MAX_CLOSE = 150
"""Close looks in one sweep, of some two requests each. The Hub answers 500 requests in 5 minutes
to who is not signed in, and more to others."""
_MAX_DUE = 100
_MAX_FAILURES = 3
"""Models in a row about which the Hub does not answer, before it counts as away."""

_FIRST_WAIT = timedelta(hours=1)
_WAIT_SHARE = 0.5
"""Of the time that a model has waited; so a month takes some fifteen looks."""
_LONGEST_WAIT = timedelta(days=30)
_AT_ONCE = frozenset({Skip.SWEEP_LIMIT, Skip.CALL_LIMIT})

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Reading:
    """How far a list was read: from its newest model back to the oldest that was looked at."""

    newest: datetime
    oldest: datetime


class _EndedError(Exception):
    """The sweep may not go on."""


class Sweep:
    """One sweep, to be run once.

    Args:
        hub: Where new models are.
        state: What is remembered between sweeps.
        config: The rules.
        inspector: Looks at single models.
        orders: Queues.
        now: The time that ages are counted to.
        dry_run: Only say what would be done.
        on_decision: Told of every model, once.
        may_go_on: Asked before whatever takes time or is written.
    """

    def __init__(
        self,
        *,
        hub: NewModels,
        state: WatchState,
        config: WatchConfig,
        inspector: Inspector,
        orders: Orders,
        now: datetime,
        dry_run: bool,
        on_decision: Callable[[Decision], None],
        may_go_on: Callable[[], bool],
    ) -> None:
        self._hub = hub
        self._state = state
        self._config = config
        self._inspector = inspector
        self._orders = orders
        self._now = now
        self._dry_run = dry_run
        self._on_decision = on_decision
        self._may_go_on = may_go_on
        self._since = now
        self._matches: list[Look] = []
        self._looked_at: set[str] = set()
        self._num_seen = 0
        self._num_matched = 0
        self._queued: list[str] = []
        self._skipped: Counter[Skip] = Counter()
        self._num_close = 0
        self._num_failures = 0
        self._sentence = ""

    def over_lists(self) -> SweepReport:
        """Everything that is new, and what was put off.

        Raises:
            RetryLaterError: The database does not answer.
        """
        return self._reported(self._look_at_lists)

    def over_repo(self, repo_id: str) -> SweepReport:
        """One model alone.

        Raises:
            RetryLaterError: The database does not answer.
        """
        return self._reported(lambda: self._look_at_repo(repo_id))

    def _reported(self, look: Callable[[], Cursor | None]) -> SweepReport:
        began, num_calls = time.monotonic(), self._hub.num_calls
        try:
            self._do(look)
        except _EndedError:
            self._sentence = "It was paused or stopped, or another runner has taken over."
        report = SweepReport(
            started_at=self._now,
            secs=time.monotonic() - began,
            num_seen=self._num_seen,
            num_matched=self._num_matched,
            queued=tuple(self._queued),
            skipped=dict(self._skipped),
            num_calls=self._hub.num_calls - num_calls,
            is_dry_run=self._dry_run,
            sentence=self._sentence,
        )
        if not self._dry_run:
            self._state.add_report(report)
        _logger.info("%s", report)
        return report

    def _do(self, look: Callable[[], Cursor | None]) -> None:
        cursor = None
        try:
            if not self._dry_run:
                self._require_turn()
                self._queued += self._orders.finish()
            try:
                cursor = look()
            # What was found before is queued all the same. A list is refused for the token's sake.
            except (HubUnavailableError, ModelNotFoundError) as error:
                self._sentence = str(error)
            self._place_all()
        except RetryLaterError as error:
            cursor, self._sentence = None, str(error)
        if cursor is not None and not self._dry_run:
            self._state.save_cursor(cursor)

    # Looking.

    def _look_at_repo(self, repo_id: str) -> None:
        self._since = self._watching_since(self._state.cursor())
        if may_cover(repo_id, self._config):
            self._look_closely(repo_id)
        else:
            self._settle(Decision(repo_id=repo_id, skip=Skip.NOT_COVERED))

    def _look_at_lists(self) -> Cursor | None:
        """Where the next sweep begins; None if the Hub has no models."""
        cursor = self._state.cursor()
        self._since = self._watching_since(cursor)
        for later in self._state.due(self._now, limit=_MAX_DUE):
            self._look_closely(later.repo_id)
        modified = self._read("lastModified", cursor.modified - _OVERLAP if cursor else None)
        if modified is None:
            return cursor
        # Who was created lately has also changed lately: this finds what the other list lacks.
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
        return cursor.since if cursor else self._now - self._look_back

    @property
    def _look_back(self) -> timedelta:
        return timedelta(hours=self._config.look_back_hours)

    def _read(
        self,
        order: Literal["createdAt", "lastModified"],
        start: datetime | None,
        *,
        changed_before: datetime | None = None,
    ) -> _Reading | None:
        """Look at a list back to `start`; None if it is empty.

        Args:
            order: Which list.
            start: None goes back some hours from the newest model: if the Hub's clock is behind
                ours, that one says how far.
            changed_before: Models that changed since are passed over: the other list has them.
        """
        newest = oldest = None
        for number, candidate in enumerate(self._hub.listed(order)):
            at = candidate.created_at if order == "createdAt" else candidate.last_modified
            # A date in the future must not keep the next sweep from what comes before it.
            newest = newest or min(at, self._now)
            if start is None:
                start = self._since = newest - self._look_back
            if at < start:
                break
            if number == _MAX_LISTED:
                self._sentence = (
                    f"More than {_MAX_LISTED:,} models are new; those from before {at:%d %B %H:%M} "
                    "were not looked at. Sweep more often, or submit them by hand."
                )
                break
            oldest = at
            if changed_before is None or candidate.last_modified < changed_before:
                self._consider(candidate)
        return None if newest is None else _Reading(newest, oldest or newest)

    def _consider(self, candidate: Candidate) -> None:
        """Look at a model closely unless the list, or memory, says enough."""
        repo_id = candidate.repo_id
        if repo_id in self._looked_at:
            return
        decision = decide(candidate, self._config, now=self._now)
        if decision.skip is None:
            known = self._state.known(repo_id)
            if known is not None and known.sha == candidate.sha:
                decision = decision.skipped(Skip.UNCHANGED)
            elif self._num_close >= _MAX_CLOSE:
                decision = decision.skipped(Skip.CALL_LIMIT)
        if decision.skip is None:
            self._look_closely(repo_id)
            return
        if decision.skip.passes_by_itself:
            self._put_aside(decision)
        else:
            self._settle(decision)

    def _look_closely(self, repo_id: str) -> None:
        self._require_turn()
        self._num_close += 1
        self._looked_at.add(repo_id)
        try:
            look = self._inspector.look(
                repo_id, now=self._now, since=self._since, recall=self._state.known
            )
        except HubUnavailableError:
            self._num_failures += 1
            if self._num_failures == _MAX_FAILURES:  # it is the Hub, not the model
                raise
            self._put_aside(Decision(repo_id=repo_id, skip=Skip.NO_ANSWER))
            return
        self._num_failures = 0
        name = look.decision.repo_id
        self._looked_at.add(name)
        if look.candidate is None or name != repo_id:  # gone, or renamed
            self._write(lambda: self._state.forget(repo_id))
        if look.decision.skip is None:
            self._num_matched += 1
            self._matches.append(look)
        else:
            self._keep(look)
            self._settle(look.decision)

    # Queueing.

    def _place_all(self) -> None:
        for look in sorted(self._matches, key=self._orders.turn):
            self._require_turn()
            skip = self._orders.place(look)
            if skip is not None:
                self._put_off(look, skip)
            else:
                self._queued.append(look.decision.repo_id)
                self._settle(look.decision)

    def _put_off(self, look: Look, skip: Skip) -> None:
        put_off = replace(look, decision=look.decision.skipped(skip))
        self._keep(put_off)
        self._settle(put_off.decision)

    # Remembering.

    def _put_aside(self, decision: Decision) -> None:
        """Look at a model again later that was not looked at closely."""
        later = self._later(decision)
        self._write(
            partial(self._state.forget, decision.repo_id)
            if later is None
            else partial(self._state.postpone, later)
        )
        self._settle(decision)

    def _keep(self, look: Look) -> None:
        """Remember why a model was skipped; it comes up again if that passes by itself."""
        candidate, known, skip = look.candidate, look.known, look.decision.skip
        if candidate is None or skip is None:
            return
        if skip is Skip.UNCHANGED:
            self._write(lambda: self._state.forget(candidate.repo_id))
            return
        kept = SeenModel(
            repo_id=candidate.repo_id,
            sha=candidate.sha,
            fingerprint=candidate.fingerprint,
            skip=skip,
        )
        if known is not None and known.job_id:
            kept = replace(kept, fingerprint=known.fingerprint, job_id=known.job_id)
        later = self._later(look.decision) if skip.passes_by_itself else None
        self._write(lambda: self._state.remember(kept, later=later))

    def _later(self, decision: Decision) -> PostponedModel | None:
        """When to look again: ever less often, and no more after a month."""
        before = self._state.later(decision.repo_id)
        if before is not None and before.due > self._now:
            return before
        since = before.since if before is not None else self._now
        last = since + _LONGEST_WAIT
        if self._now >= last:
            return None
        pause = max(_FIRST_WAIT, (self._now - since) * _WAIT_SHARE)
        due = self._now if decision.skip in _AT_ONCE else min(self._now + pause, last)
        return PostponedModel(repo_id=decision.repo_id, due=due, since=since)

    def _settle(self, decision: Decision) -> None:
        self._num_seen += 1
        if decision.skip is not None:
            self._skipped[decision.skip] += 1
        self._on_decision(decision)

    def _write(self, write: Callable[[], None]) -> None:
        if not self._dry_run:
            write()

    def _require_turn(self) -> None:
        if not self._may_go_on():
            raise _EndedError
