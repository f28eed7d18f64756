"""What becomes of one model, apart from how much may be queued: rules, memory, what there is."""

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
from dynquant.model.candidate import Candidate
from dynquant.model.naming import quantized_name, repo_ids
from dynquant.watch.ports import NewModels
from dynquant.watch.records import SeenModel
from dynquant.watch.rules import Decision, Rule, WatchConfig, decide
from dynquant.watch.skips import Skip
from dynquant.watch.targets import MemoryFootprint, targets_of

__all__ = ["Inspector", "Look"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What a close look at a model gave.

    Attributes:
        candidate: None if there is no such model any more.
        known: What was known of it before.
    """

    decision: Decision
    candidate: Candidate | None = None
    known: SeenModel | None = None


class Inspector:
    """Looks at models one by one.

    Args:
        hub: Where they are.
        config: The rules.
        supports: Says of a `model_type` whether it can be converted.
        footprint_of: Layers and cache of a model, for rules that name memory sizes; None uses
            an estimate. Raises RequestError for a model that cannot be converted.
    """

    def __init__(
        self,
        hub: NewModels,
        config: WatchConfig,
        *,
        supports: Callable[[str], bool],
        footprint_of: Callable[[Candidate], MemoryFootprint] | None,
    ) -> None:
        self._hub = hub
        self._config = config
        self._rules = {rule.name: rule for rule in config.rules}
        self._supports = supports
        self._footprint_of = footprint_of

    def look(
        self,
        repo_id: str,
        *,
        now: datetime,
        since: datetime,
        recall: Callable[[str], SeenModel | None],
    ) -> Look:
        """Decide about a model by everything that the Hub tells of it.

        Args:
            repo_id: The model.
            now: The time that ages are counted to.
            since: Weights that are older are no news.
            recall: What is known of a model from before.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx; or the token has expired.
        """
        try:
            candidate = self._hub.look_up(repo_id)
            known = recall(candidate.repo_id)
            decision = self._decide(candidate, known, now=now, since=since)
        except ModelNotFoundError as error:
            if error.reason is Reason.TOKEN_REFUSED:  # which says nothing about the model
                raise HubUnavailableError(str(error)) from error
            skip = Skip.GATED if error.reason is Reason.GATED else Skip.GONE
            return Look(decision=Decision(repo_id=repo_id, skip=skip))
        # Repos can have very many files, and nobody asks for them any more.
        return Look(decision=decision, candidate=replace(candidate, files=()), known=known)

    def _decide(
        self, candidate: Candidate, known: SeenModel | None, *, now: datetime, since: datetime
    ) -> Decision:
        if known is not None and _is_settled(known, candidate):
            return Decision(repo_id=candidate.repo_id, skip=Skip.UNCHANGED)
        decision = decide(candidate, self._config, now=now)
        if decision.skip is not None:
            return decision
        before = known if known is not None and known.job_id else None  # only if it was queued
        if before is not None and before.fingerprint == candidate.fingerprint:
            return decision.skipped(Skip.SAME_WEIGHTS)
        if before is None and self._is_old(candidate, since):
            return decision.skipped(Skip.OLD_WEIGHTS)
        return self._with_targets(decision, candidate, is_update=before is not None)

    def _with_targets(
        self, decision: Decision, candidate: Candidate, *, is_update: bool
    ) -> Decision:
        rule = self._rules[decision.rule]
        try:
            targets = self._targets(rule, candidate)
        except ModelNotFoundError:  # gone since it was looked up, or nobody may read its files
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
        """Whether only something else than the weights of an old model has changed."""
        return candidate.created_at < since and self._hub.weights_uploaded_at(candidate) < since

    def _targets(self, rule: Rule, candidate: Candidate) -> tuple[float, ...]:
        assert candidate.num_parameters is not None  # a manner sees to that
        if not self._supports(candidate.model_type):
            raise UnsupportedModelError(
                f"mlx-lm has no architecture for model_type '{candidate.model_type[:80]}'."
            )
        footprint = None
        if rule.memory_bytes and self._footprint_of is not None:
            footprint = self._footprint_of(candidate)
        return targets_of(rule, num_parameters=candidate.num_parameters, footprint=footprint)

    def _missing(
        self, rule: Rule, candidate: Candidate, targets: tuple[float, ...]
    ) -> tuple[float, ...]:
        """The targets that nobody has published yet for these weights."""
        source = candidate.repo_id
        there = self._hub.dynquants_of(source)
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
        """Whether a repo of dynquant was made of the weights that the model has now."""
        sha = self._hub.source_sha(quant)
        if not sha or sha == candidate.sha:
            return bool(sha)
        return self._hub.fingerprint(candidate.repo_id, sha) == candidate.fingerprint


def _is_settled(known: SeenModel, candidate: Candidate) -> bool:
    """Whether a model was decided about at this commit, and another look would say the same."""
    is_open = known.skip is not None and known.skip.passes_by_itself
    return known.sha == candidate.sha and not is_open
