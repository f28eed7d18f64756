"""Published models with the figures of their plans and reports."""

from __future__ import annotations

import logging
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from dynquant.errors import DynquantError
from dynquant.hub.search import FoundModel, HubSearch
from dynquant.report.artefacts import facts_from_json
from dynquant.report.facts import ModelFacts, SizeVariant
from dynquant.web.single_flight import SingleFlightCache

__all__ = ["FinishedModel", "FinishedModels"]

_FRESH_SECS = 120.0
_MAX_MODELS = 60
_NUM_READERS = 4
_RETRY_SECS = 15.0

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedModel:
    """A published model."""

    repo_id: str
    facts: ModelFacts
    downloads: int
    created_at: datetime | None

    @property
    def variant(self) -> SizeVariant:
        """Its figures, as one of the sizes of its original."""
        row = self.facts.rows[-1]
        return SizeVariant(
            name=self.repo_id,
            target_bpw=self.facts.plan.target_bpw,
            stored_bpw=row.stored_bpw,
            num_bytes=row.num_bytes,
            mean_kl_nats=row.quality.mean_kl_nats,
            mean_kl_se_nats=row.quality.mean_kl_se_nats,
            top1_agreement=row.quality.top1_agreement,
        )


class FinishedModels:
    """Reads finished models from the Hub, and keeps the files of each commit, which never change.

    Args:
        search: Searches models on the Hub.
        namespace: Owner of the models; None for all owners.
    """

    def __init__(self, search: HubSearch, *, namespace: str | None) -> None:
        self._search = search
        self._namespace = namespace
        self._asking = threading.Lock()
        self._lists: SingleFlightCache[str, tuple[FinishedModel, ...]] = SingleFlightCache(
            fresh_secs=_FRESH_SECS
        )
        self._facts: SingleFlightCache[tuple[str, str], ModelFacts] = SingleFlightCache(
            fresh_secs=math.inf, failed_secs=_RETRY_SECS, max_keys=512
        )

    def all(self) -> tuple[FinishedModel, ...]:
        """The models, the newest first.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx.
        """
        return self._lists("", self._read_all)

    def known(self) -> tuple[FinishedModel, ...]:
        """The models that are known now; an outdated list is read again in the background."""
        if not self._lists.is_fresh("") and self._asking.acquire(blocking=False):
            threading.Thread(target=self._refresh, name="finished-models", daemon=True).start()
        return self._lists.known("") or ()

    def measured(self, quants: tuple[FoundModel, ...]) -> tuple[SizeVariant, ...]:
        """Figures of some quants; unreadable quants are left out."""
        return tuple(each.variant for each in self._read(quants))

    def facts(self, repo_id: str, sha: str) -> ModelFacts:
        """The facts in a published repo.

        Raises:
            ModelNotFoundError, InvalidModelError: It cannot be read, or is not by dynquant.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        return self._facts(
            (repo_id, sha),
            lambda: facts_from_json(*self._search.plan_and_report(repo_id, sha), name=repo_id),
        )

    def _refresh(self) -> None:
        try:
            self.all()
        except DynquantError as error:
            _logger.info("The list of finished models cannot be read: %s", error)
            time.sleep(_RETRY_SECS)
        finally:
            self._asking.release()

    def _read_all(self) -> tuple[FinishedModel, ...]:
        return self._read(self._search.finished(author=self._namespace, limit=_MAX_MODELS))

    def _read(self, found: tuple[FoundModel, ...]) -> tuple[FinishedModel, ...]:
        with ThreadPoolExecutor(_NUM_READERS) as pool:
            read = pool.map(self._finished, found)
            return tuple(each for each in read if each is not None)

    def _finished(self, found: FoundModel) -> FinishedModel | None:
        """A model; None if its files are not by dynquant, whatever its tags are."""
        try:
            facts = self.facts(found.repo_id, found.sha)
        except DynquantError as error:
            _logger.info("'%s' is left out: %s", found.repo_id, error)
            return None
        return FinishedModel(
            repo_id=found.repo_id,
            facts=facts,
            downloads=found.downloads,
            created_at=found.created_at,
        )
