"""The decision about one model, before limits: rules, memory sizes, and quants that exist."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from dynquant.errors import (
    HubUnavailableError,
    ModelNotFoundError,
    Reason,
    RequestError,
    UnsupportedModelError,
)
from dynquant.hub.new_models import HubNewModels
from dynquant.model.candidate import Candidate
from dynquant.model.naming import quantized_name, repo_ids
from dynquant.watch.config import Rule, WatchConfig
from dynquant.watch.records import SeenModel
from dynquant.watch.rules import Decision, decide
from dynquant.watch.skips import Skip
from dynquant.watch.targets import MemoryFootprint, targets_of

__all__ = ["Inspector", "Look"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The result of a close look at a model.

    Attributes:
        candidate: None if the model is gone.
        seen: The close look before this one.
    """

    decision: Decision
    candidate: Candidate | None = None
    seen: SeenModel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspector:
    """Looks at models one by one.

    Attributes:
        hub: The Hub.
        config: The rules.
        supports: Whether a `model_type` can be converted.
        footprint_of: Layers and cache of a model, for rules that name memory sizes; None uses
            an estimate. Raises RequestError for a model that cannot be converted.
    """

    hub: HubNewModels
    config: WatchConfig
    supports: Callable[[str], bool]
    footprint_of: Callable[[Candidate], MemoryFootprint] | None

    def look(
        self,
        repo_id: str,
        *,
        now: datetime,
        since: datetime,
        recall: Callable[[str], SeenModel | None],
    ) -> Look:
        """Decide about a model by all of its metadata on the Hub.

        Args:
            repo_id: The model.
            now: The time that ages are counted to.
            since: Older weights do not count as new.
            recall: The last close look at a model.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx; or the token has expired.
        """
        try:
            candidate = self.hub.look_up(repo_id)
            seen = recall(candidate.repo_id)
            decision = self._decide(candidate, seen, now=now, since=since)
        except ModelNotFoundError as error:
            if error.reason is Reason.TOKEN_REFUSED:  # the model itself may be there
                raise HubUnavailableError(str(error)) from error
            skip = Skip.GATED if error.reason is Reason.GATED else Skip.GONE
            return Look(decision=Decision(repo_id=repo_id, skip=skip))
        # Repos can have very many files, and no later step reads them.
        return Look(decision=decision, candidate=replace(candidate, files=()), seen=seen)

    def _decide(
        self, candidate: Candidate, seen: SeenModel | None, *, now: datetime, since: datetime
    ) -> Decision:
        if seen is not None and _is_settled(seen, candidate):
            return Decision(repo_id=candidate.repo_id, skip=Skip.UNCHANGED)
        decision = decide(candidate, self.config, now=now)
        if decision.skip is not None:
            return decision
        before = seen if seen is not None and seen.job_id else None  # only if it was queued
        if before is not None and before.fingerprint == candidate.fingerprint:
            return decision.skipped(Skip.SAME_WEIGHTS)
        if before is None and self._is_old(candidate, since):
            return decision.skipped(Skip.OLD_WEIGHTS)
        return self._with_targets(decision, candidate, is_update=before is not None)

    def _with_targets(
        self, decision: Decision, candidate: Candidate, *, is_update: bool
    ) -> Decision:
        rule = self.config.rule(decision.rule)
        try:
            targets = self._targets(rule, candidate)
        except ModelNotFoundError:  # gone since it was looked up, or its files are closed
            raise
        except RequestError as error:
            _logger.info("'%s' cannot be converted: %s", candidate.repo_id, error)
            return decision.skipped(Skip.UNSUPPORTED)
        if not targets:
            return decision.skipped(Skip.DOES_NOT_FIT)
        if not is_update:
            targets = self._missing(rule, candidate, targets)
        if not targets:
            return decision.skipped(Skip.ALREADY_PUBLISHED)
        return replace(decision, targets_bpw=targets)

    def _is_old(self, candidate: Candidate, since: datetime) -> bool:
        """Whether the weights are older than `since`; only other files have changed."""
        return candidate.created_at < since and self.hub.weights_uploaded_at(candidate) < since

    def _targets(self, rule: Rule, candidate: Candidate) -> tuple[float, ...]:
        assert candidate.num_parameters is not None  # see Skip.UNKNOWN_SIZE
        if not self.supports(candidate.model_type):
            raise UnsupportedModelError(
                f"mlx-lm has no architecture for model_type '{candidate.model_type[:80]}'."
            )
        footprint = None
        if rule.memory_bytes and self.footprint_of is not None:
            footprint = self.footprint_of(candidate)
        return targets_of(rule, num_parameters=candidate.num_parameters, footprint=footprint)

    def _missing(
        self, rule: Rule, candidate: Candidate, targets: tuple[float, ...]
    ) -> tuple[float, ...]:
        """The targets of which no quant of these weights is on the Hub."""
        source = candidate.repo_id
        there = self.hub.dynquants_of(source)
        if not there:
            return targets
        names = {quantized_name(source, target): (source, target) for target in targets}
        ours = repo_ids(rule.destination, names)
        by_default = repo_ids("anywhere", names)

        def is_there(target: float) -> bool:
            name = quantized_name(source, target)
            _, _, default = by_default[name].partition("/")
            return any(
                self._is_of(each, candidate)
                for each in there
                if each == ours[name] or each.partition("/")[2] in {name, default}
            )

        return tuple(target for target in targets if not is_there(target))

    def _is_of(self, quant: str, candidate: Candidate) -> bool:
        """Whether a repo of dynquant was made of the model's current weights."""
        sha = self.hub.source_sha(quant)
        if not sha or sha == candidate.sha:
            return bool(sha)
        return self.hub.fingerprint(candidate.repo_id, sha) == candidate.fingerprint


def _is_settled(seen: SeenModel, candidate: Candidate) -> bool:
    """Whether this commit was decided about, and another look would decide the same."""
    is_open = seen.skip is not None and seen.skip.may_pass
    return seen.sha == candidate.sha and not is_open
