"""Jobs for the models that rules took: within the limits of each rule, each stored first."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from dataclasses import dataclass, field

from dynquant.errors import RequestError
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.job import JobState
from dynquant.jobs.request import JobRequest, Priority, job_id
from dynquant.model.naming import WATCHER
from dynquant.quant.recipe import RECIPE_VERSION
from dynquant.watch.config import Rule, WatchConfig
from dynquant.watch.inspecting import Look
from dynquant.watch.records import Order, SeenModel
from dynquant.watch.skips import Skip
from dynquant.watch.state import DatabaseWatchState
from dynquant.watch.targets import num_published_bytes

__all__ = ["Orders"]

_DAY_SECS = 24 * 3600.0
_GB = 10**9
_BILLION = 10**9

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Spent:
    """The sum of a rule's orders within 24 hours."""

    num_bytes: int
    hours: float


@dataclass(slots=True, kw_only=True)
class Orders:
    """Queues the matches of one sweep.

    Attributes:
        board: The queue.
        state: Stores orders before they are queued.
        config: The rules, with their limits.
        dry_run: Count against the limits, and queue nothing.
    """

    board: DatabaseBoard
    state: DatabaseWatchState
    config: WatchConfig
    dry_run: bool
    _num_placed: Counter[str] = field(init=False, default_factory=Counter)
    _spent: dict[str, _Spent] = field(init=False, default_factory=dict)

    def sort_key(self, look: Look) -> tuple[object, ...]:
        """The order in which matches are queued: priority, then age."""
        assert look.candidate is not None
        rule = self.config.rule(look.decision.rule)
        return rule.priority, look.candidate.created_at, look.candidate.repo_id

    def finish(self) -> list[str]:
        """Queue the stored orders of a sweep that died; the models' names.

        Raises:
            RetryLaterError: The queue takes nothing now.
        """
        finished = []
        for order in self.state.unsubmitted():
            with contextlib.suppress(RequestError):
                self._submit(order)
                finished.append(order.request.model)
        return finished

    def place(self, look: Look) -> Skip | None:
        """Queue a model that a rule took; the reason if it is not queued.

        Raises:
            RetryLaterError: The queue takes nothing now; the order is stored.
        """
        assert look.candidate is not None
        if self.state.seen(look.candidate.repo_id) != look.seen:
            return Skip.UNCHANGED  # a webhook has looked meanwhile, perhaps at newer weights
        order = self._order(look)
        rule = self.config.rule(order.rule)
        if (skip := self._over_limit(rule, order)) is not None:
            return skip
        self._num_placed[rule.name] += 1
        spent = self._spent_by(rule)
        spent.num_bytes += order.num_bytes
        spent.hours += order.hours
        if self.dry_run:
            return None
        if look.seen is not None and look.seen.job_id not in {"", order.job_id}:
            self._withdraw(look.seen.job_id)
        self.state.order(
            order,
            SeenModel(
                repo_id=look.candidate.repo_id,
                sha=look.candidate.sha,
                fingerprint=look.candidate.fingerprint,
                job_id=order.job_id,
            ),
            mention=rule.mention,
        )
        try:
            self._submit(order)
        except RequestError as error:
            _logger.warning("The queue refused '%s': %s", look.candidate.repo_id, error)
            return Skip.REFUSED
        return None

    def _order(self, look: Look) -> Order:
        candidate, targets = look.candidate, look.decision.targets_bpw
        assert candidate is not None
        assert candidate.num_parameters is not None
        rule = self.config.rule(look.decision.rule)
        request = JobRequest(
            model=candidate.repo_id,
            revision=candidate.sha,
            targets_bpw=targets,
            destination=rule.destination,
            requester=WATCHER,
            priority=Priority.WATCHER,
            private=rule.private,
            source_is_private=candidate.private,
        )
        return Order(
            job_id=job_id(request, revision_sha=candidate.sha, recipe_version=RECIPE_VERSION),
            request=request,
            rule=rule.name,
            num_bytes=num_published_bytes(targets, candidate.num_parameters),
            hours=self.config.hours_per_billion * candidate.num_parameters / _BILLION,
        )

    def _over_limit(self, rule: Rule, order: Order) -> Skip | None:
        most_bytes = float("inf") if rule.gb_per_day is None else rule.gb_per_day * _GB
        most_hours = float("inf") if rule.hours_per_day is None else rule.hours_per_day
        if order.num_bytes > most_bytes or order.hours > most_hours:
            return Skip.TOO_LARGE
        if self._num_placed[rule.name] >= rule.max_per_sweep:
            return Skip.SWEEP_LIMIT
        spent = self._spent_by(rule)
        if spent.num_bytes + order.num_bytes > most_bytes or spent.hours + order.hours > most_hours:
            return Skip.DAY_LIMIT
        return None

    def _spent_by(self, rule: Rule) -> _Spent:
        if rule.name not in self._spent:
            spent = self.state.spent(rule.name, within_secs=_DAY_SECS)
            self._spent[rule.name] = _Spent(*spent)
        return self._spent[rule.name]

    def _submit(self, order: Order) -> None:
        """Queue an order; an order that was queued before is the same job.

        Raises:
            RequestError: The queue refused it for good.
        """
        assert order.request.revision is not None
        try:
            self.board.submit(
                order.request,
                revision_sha=order.request.revision,
                source_is_private=order.request.source_is_private,
                recipe_version=RECIPE_VERSION,
            )
        except RequestError:
            self.state.submitted(order.job_id)
            raise
        self.state.submitted(order.job_id)

    def _withdraw(self, identity: str) -> None:
        """Cancel a waiting job whose weights have been replaced."""
        with contextlib.suppress(RequestError):  # the job is over, or deleted
            job = self.board.get(identity)
            if job.state is JobState.WAITING and job.request.priority is Priority.WATCHER:
                self.board.cancel(identity)
