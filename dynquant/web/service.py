"""The actions of visitors, for the pages and for the API."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from dynquant.errors import RequestError
from dynquant.hub.search import FoundModel, HubSearch
from dynquant.hub.visitor import HubVisitor
from dynquant.jobs.job import Job, JobState
from dynquant.jobs.ports import JobEvent, RunnerStatus
from dynquant.jobs.request import JobRequest
from dynquant.jobs.whole_progress import WholeProgress, shares_of, whole_progress
from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.report.forecast import TargetForecast, target_forecast
from dynquant.watch.status import WatchAct, WatchStatus
from dynquant.web.finished_models import FinishedModels
from dynquant.web.limits import Limits
from dynquant.web.model_lookup import ModelLookup, ModelPreview
from dynquant.web.orders import Order, Outcome, destination_of, menu_of, options_of, outcome_of
from dynquant.web.ports import JobsPort, WatchPort
from dynquant.web.queue_summary import QueueSummary, summarize_queue
from dynquant.web.settings import WebSettings
from dynquant.web.sign_in import SignIn, Visitor
from dynquant.web.single_flight import SingleFlightCache
from dynquant.web.visitor_ids import account_key, visitor_id

__all__ = ["DEFAULT_CONTEXT_TOKENS", "Board", "Service"]

CheckDestination = Callable[[str, Origin, Access], None]
"""As `dynquant.publish.ModelPublisher.check`: repo, original, access of the quant."""

DEFAULT_CONTEXT_TOKENS = 4_096
_FRESH_SECS = 2.0
"""Maximum age of a board that is shown: about the time between two looks of a page."""
_MAX_JOBS = 300
_NUM_HISTORIES = 10
"""Published jobs that the shares of steps are averaged over."""
_NUM_ASKED, _NUM_FOUND = 40, 12
_MIN_SEARCH = 2
_MAX_TARGETS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    """All jobs and runners at one time."""

    jobs: tuple[Job, ...]
    runners: tuple[RunnerStatus, ...]
    queue: QueueSummary


@dataclass(frozen=True, kw_only=True)
class Service:
    """The actions of visitors.

    Attributes:
        settings: How the pages are served.
        jobs: The queue.
        sign_in: Identifies visitors.
        model_lookup: Previews of models that could be quantized.
        search: Searches models on the Hub.
        finished_models: Models that dynquant published.
        namespace: Gives the namespace that models are published to; None if it is unknown.
        check_destination: Refuses a repo that the runner here could not write; None where runners
            are elsewhere, and refuse it themselves.
        watch: The watcher; None if it has no rules.
    """

    settings: WebSettings
    jobs: JobsPort
    sign_in: SignIn
    model_lookup: ModelLookup
    search: HubSearch
    finished_models: FinishedModels
    namespace: Callable[[], str | None]
    check_destination: CheckDestination | None = None
    watch: WatchPort | None = None
    _boards: SingleFlightCache[str, Board] = field(
        default_factory=lambda: SingleFlightCache(fresh_secs=_FRESH_SECS), init=False
    )
    _job_cache: SingleFlightCache[str, tuple[Job, tuple[JobEvent, ...]]] = field(
        default_factory=lambda: SingleFlightCache(fresh_secs=_FRESH_SECS), init=False
    )
    _watches: SingleFlightCache[str, WatchStatus] = field(
        default_factory=lambda: SingleFlightCache(fresh_secs=_FRESH_SECS), init=False
    )
    _shares: SingleFlightCache[str, Mapping[str, float]] = field(
        default_factory=lambda: SingleFlightCache(fresh_secs=60.0), init=False
    )
    _searches: SingleFlightCache[str, tuple[FoundModel, ...]] = field(
        default_factory=lambda: SingleFlightCache(fresh_secs=60.0, max_keys=1_000), init=False
    )

    _limits: Limits = field(default_factory=lambda: Limits(visitor=visitor_id), init=False)

    def find(self, typed: str) -> tuple[FoundModel, ...]:
        """Models whose names contain the typed text.

        Raises:
            RetryLaterError: The visitor is over the limit.
        """
        typed = typed.strip().lower()[:96]
        if len(typed) < _MIN_SEARCH or "://" in typed:
            return ()
        self._count("search")
        return self._searches(
            typed, lambda: _originals(self.search.models(typed, limit=_NUM_ASKED))
        )

    def popular(self) -> tuple[FoundModel, ...]:
        """Popular models, offered before the visitor types."""
        return self._searches("", self._popular)

    def look_at(self, model: str) -> ModelPreview:
        """Preview of the model that a visitor chooses; see `ModelLookup`.

        Raises:
            RetryLaterError: The visitor is over the limit.
        """
        self._count("look at models")
        return self.model_lookup(model)

    def chosen(self, model: str) -> ModelPreview:
        """As `look_at`, for a model chosen before: counts only if its preview has expired.

        Raises:
            RetryLaterError: The visitor is over the limit.
        """
        return self.model_lookup(model) if self.model_lookup.knows(model) else self.look_at(model)

    def forecasts(
        self,
        preview: ModelPreview,
        targets_bpw: tuple[float, ...],
        *,
        context_tokens: int,
        formats: str = "",
    ) -> tuple[TargetForecast, ...]:
        """The forecast of each target with these formats, all if empty; see `target_forecast`.

        Raises:
            RequestError: A target cannot be met, or the number of targets is out of bounds.
        """
        if not 1 <= len(targets_bpw) <= _MAX_TARGETS:
            raise RequestError(f"Ask for 1 to {_MAX_TARGETS} numbers of bits per weight at once.")
        if formats.strip():
            inventory = preview.inventory.within(menu_of(formats))
            preview = replace(preview, inventory=inventory)
        measured = self.finished_models.measured(preview.quants)
        return tuple(
            target_forecast(
                preview.inventory,
                bpw,
                context_tokens=context_tokens,
                cache_bytes_per_token=preview.cache_bytes_per_token,
                measured=measured,
            )
            for bpw in targets_bpw
        )

    def board(self) -> Board:
        """All jobs and runners, some seconds old at most."""
        return self._boards("", self._read_board)

    def job(self, job_id: str) -> tuple[Job, tuple[JobEvent, ...]]:
        """A job and its log, some seconds old at most.

        Raises:
            RequestError: There is no such job.
        """
        return self._job_cache(job_id, lambda: (self.jobs.get(job_id), self.jobs.log(job_id)))

    def progress(self, job: Job) -> WholeProgress | None:
        """Progress of a running job over all of its steps; None for another job."""
        if job.state is not JobState.RUNNING:
            return None
        return whole_progress(job, self._shares("", self._read_shares))

    def watch_status(self) -> WatchStatus:
        """The watcher's status, some seconds old at most.

        Raises:
            RequestError: There is no watcher here.
            RetryLaterError: Its status is unavailable now.
        """
        return self._watches("", self._watcher().status)

    def control_watcher(self, visitor: Visitor, act: WatchAct) -> str:
        """Carry out a command to the watcher; a sentence for the visitor.

        Raises:
            RequestError: The visitor is no operator, or no sweep can begin now.
        """
        watcher = self._watcher()
        if not visitor.is_operator:
            raise RequestError("Only operators control the watcher.")
        try:
            return watcher.control(act)
        finally:
            self._watches.forget("")

    def outcome(self, visitor: Visitor | None, order: Order, preview: ModelPreview) -> Outcome:
        """The repos that an order makes, and who may read them; see `outcome_of`."""
        return outcome_of(
            order,
            preview,
            visitor=visitor,
            namespace=self.namespace(),
            is_space=self.settings.is_space,
        )

    def submit(self, visitor: Visitor, order: Order) -> Job:
        """Queue a visitor's order.

        Raises:
            RequestError: The order cannot be met, or its destination cannot be written; says what
                to change.
            RetryLaterError: The visitor is over a limit, or the queue is unavailable.
        """
        self._count("ask for models", who=account_key(visitor.name))
        preview = self.model_lookup(order.model)
        self.forecasts(  # refuses infeasible targets
            preview,
            order.targets_bpw,
            context_tokens=DEFAULT_CONTEXT_TOKENS,
            formats=order.formats,
        )
        outcome = self.outcome(visitor, order, preview)
        if self.check_destination is not None:
            origin = Origin(name=preview.repo_id, hub_id=preview.hub_id)
            for repo_id in outcome.repo_ids:
                self.check_destination(repo_id, origin, outcome.access)
        job = self.jobs.submit_anew(
            JobRequest(
                model=preview.repo_id,
                revision=preview.revision_sha,
                targets_bpw=order.targets_bpw,
                destination=destination_of(order, visitor=visitor, namespace=self.namespace()),
                requester=visitor.name,
                requester_id=visitor.hub_id,
                private=order.private,
                source_is_private=preview.is_private,
                options=options_of(order),
                notify_url=order.notify_url.strip() or None,
            )
        )
        self._changed(job.id)
        return job

    def cancel(self, visitor: Visitor, job_id: str) -> Job:
        """Cancel the visitor's own job.

        Raises:
            RequestError: There is no such job, it is over, or it is another visitor's.
        """
        self._require_own(visitor, job_id, "cancel")
        try:
            return self.jobs.cancel(job_id)
        finally:
            self._changed(job_id)

    def retry(self, visitor: Visitor, job_id: str) -> Job:
        """Retry the visitor's own job.

        Raises:
            RequestError: There is no such job, it is not over, or it is another visitor's.
            RetryLaterError: The requester is over the limit.
        """
        self._require_own(visitor, job_id, "retry")
        try:
            return self.jobs.retry(job_id)
        finally:
            self._changed(job_id)

    def copy(self, token: str | None, job_id: str, *, private: bool) -> tuple[str, ...]:
        """Copy the models of a job to the account of `token`; ids of the copies.

        Raises:
            RequestError: The visitor is not signed in, nothing was published, or a name is taken.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        visitor = self.sign_in.require(token)
        assert token is not None
        job, _ = self.job(job_id)
        if not job.results:
            raise RequestError("This job has published nothing yet, so there is nothing to copy.")
        return HubVisitor(token).copy_all(
            [each.repo_id for each in job.results], namespace=visitor.name, private=private
        )

    def _read_shares(self) -> Mapping[str, float]:
        """Share of each step, from the latest jobs that were published."""
        ended = [each for each in self.board().jobs if each.state is JobState.PUBLISHED]
        return shares_of(
            [
                (self.jobs.log(each.id), each.ended_at)
                for each in ended[:_NUM_HISTORIES]
                if each.ended_at is not None
            ]
        )

    def _popular(self) -> tuple[FoundModel, ...]:
        found = _originals(self.search.popular(limit=_NUM_ASKED))
        # A Hub of one's own has few models, whose cards may name no task.
        return found or _originals(self.search.models("", limit=_NUM_ASKED))

    def _count(self, what: str, *, who: str = "") -> None:
        """Count an action of a visitor; a local machine has no limits."""
        if self.settings.is_space:
            self._limits.count(what, who=who)

    def _read_board(self) -> Board:
        jobs = self.jobs.list(limit=_MAX_JOBS)
        runners = self.jobs.runners()
        return Board(jobs=jobs, runners=runners, queue=summarize_queue(jobs, runners))

    def _watcher(self) -> WatchPort:
        if self.watch is None:
            raise RequestError("The watcher has no rules here. Set DYNQUANT_WATCH_CONFIG.")
        return self.watch

    def _changed(self, job_id: str) -> None:
        self._boards.forget("")
        self._job_cache.forget(job_id)

    def _require_own(self, visitor: Visitor, job_id: str, what: str) -> None:
        if not visitor.owns(self.jobs.get(job_id)):
            raise RequestError(
                f"This job belongs to another account. Only its requester and the operators can "
                f"{what} it."
            )


def _originals(found: tuple[FoundModel, ...]) -> tuple[FoundModel, ...]:
    """The originals among the models found: most results for a well-known model are quants."""
    return tuple(each for each in found if not each.is_quant)[:_NUM_FOUND]
