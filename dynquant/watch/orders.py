"""Jobs for what was decided upon: within the limits of each rule, each written down first."""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from dataclasses import dataclass

from dynquant.errors import RequestError
from dynquant.jobs.job import JobState
from dynquant.jobs.ports import JobBoard
from dynquant.jobs.request import JobRequest, Priority, job_id
from dynquant.model.naming import WATCHER
from dynquant.quant.recipe import RECIPE_VERSION
from dynquant.watch.inspecting import Look
from dynquant.watch.ports import WatchState
from dynquant.watch.records import Order, SeenModel
from dynquant.watch.rules import Rule, WatchConfig
from dynquant.watch.skips import Skip
from dynquant.watch.targets import num_published_bytes

__all__ = ["Orders"]

_DAY_SECS = 24 * 3600.0
_GB = 10**9
_BILLION = 10**9

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Spent:
    """What a rule has ordered within 24 hours."""

    num_bytes: int
    hours: float


class Orders:
    """Queues what one sweep decided upon.

    Args:
        board: Where jobs are queued.
        state: Where they are written down.
        config: The rules, with their limits.
        dry_run: Only count.
    """

    def __init__(
        self, board: JobBoard, state: WatchState, config: WatchConfig, *, dry_run: bool
    ) -> None:
        self._board = board
        self._state = state
        self._config = config
        self._rules = {rule.name: rule for rule in config.rules}
        self._dry_run = dry_run
        self._num_placed: Counter[str] = Counter()
        self._spent: dict[str, _Spent] = {}

    def turn(self, look: Look) -> tuple[object, ...]:
        """What to sort matches by: which is to be placed first."""
        assert look.candidate is not None
        rule = self._rules[look.decision.rule]
        return rule.priority, look.candidate.created_at, look.candidate.repo_id

    def finish(self) -> list[str]:
        """Queue what an earlier sweep wrote down and did not live to queue; the models' names.

        Raises:
            RetryLaterError: The queue takes nothing now.
        """
        finished = []
        for order in self._state.unsubmitted():
            with contextlib.suppress(RequestError):
                self._submit(order)
                finished.append(order.request.model)
        return finished

    def place(self, look: Look) -> Skip | None:
        """Queue a model that a rule took, or say why not now.

        Raises:
            RetryLaterError: The queue takes nothing now; the order is written down.
        """
        assert look.candidate is not None
        if self._state.known(look.candidate.repo_id) != look.known:
            return Skip.UNCHANGED  # a webhook was quicker, and has seen newer weights perhaps
        order = self._order(look)
        rule = self._rules[order.rule]
        if (skip := self._over_limit(rule, order)) is not None:
            return skip
        self._num_placed[rule.name] += 1
        spent = self._spent_by(rule)
        spent.num_bytes += order.num_bytes
        spent.hours += order.hours
        if self._dry_run:
            return None
        if look.known is not None and look.known.job_id not in {"", order.job_id}:
            self._withdraw(look.known.job_id)
        self._state.order(
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
        rule = self._rules[look.decision.rule]
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
            hours=self._config.hours_per_billion * candidate.num_parameters / _BILLION,
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
            spent = self._state.spent(rule.name, within_secs=_DAY_SECS)
            self._spent[rule.name] = _Spent(*spent)
        return self._spent[rule.name]

    def _submit(self, order: Order) -> None:
        """Queue an order; the job that there is already if it was queued before.

        Raises:
            RequestError: The queue refused it, and will again.
        """
        assert order.request.revision is not None
        try:
            self._board.submit(
                order.request,
                revision_sha=order.request.revision,
                source_is_private=order.request.source_is_private,
                recipe_version=RECIPE_VERSION,
            )
        except RequestError:
            self._state.submitted(order.job_id)
            raise
        self._state.submitted(order.job_id)

    def _withdraw(self, identity: str) -> None:
        """Do not begin with weights that have been replaced meanwhile."""
        with contextlib.suppress(RequestError):  # nobody knows it any more, or it is over
            job = self._board.get(identity)
            if job.state is JobState.WAITING and job.request.priority is Priority.WATCHER:
                self._board.cancel(identity)
