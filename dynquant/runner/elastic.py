"""Elastic runners: a Job of the Hub runs a runner while work waits that no live runner can take.

This process computes nothing. It looks at the queue, or at the inbox of a Space, and starts Jobs
within a budget; the Jobs take the work from there, and end after some minutes without any. A Job
that dies loses nothing: its work is still in the queue or in the inbox, and another Job starts.
"""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache, partial
from urllib.parse import urlsplit

from dynquant.errors import DynquantError, InvalidOptionError, RequestError
from dynquant.hub.inbox import HubInbox
from dynquant.hub.jobs import HubJobs
from dynquant.hub.models import HubModels
from dynquant.hub.publishing import HubPublisher
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.job import JobState
from dynquant.jobs.request import JobRequest
from dynquant.logs import configure_logging, secrets_in
from dynquant.model.naming import is_ours
from dynquant.quant.header_inventory import header_inventory
from dynquant.rented.budget import (
    Budget,
    budget_left_micro_usd,
    hindrance,
    price_labels,
    spent_micro_usd,
)
from dynquant.rented.command import LABEL, job_command
from dynquant.rented.hardware import dollars
from dynquant.rented.job import RentedJob
from dynquant.rented.needs import Needs, needs_of
from dynquant.rented.offer import offer_for
from dynquant.settings import Settings

__all__ = ["ElasticRunners", "recent", "runner_labels", "serve_elastic"]

_ROUND_SECS = 30.0
_IDLE_MINS = 3
"""A Job that has run nothing for so long ends. A runner needs half a minute to see that another one
died, and takes its job then."""

_PASSED_ON = (
    "DYNQUANT_INBOX_REPO", "DYNQUANT_PUBLISH_TO", "DYNQUANT_INBOX_DESTINATIONS",
    "DYNQUANT_INBOX_PRIVATE_SOURCES", "DYNQUANT_SPACE_URL", "DYNQUANT_DAILY_LIMIT",
)  # fmt: skip
_SECRETS = ("DYNQUANT_SPACE_SECRET", "DYNQUANT_DATABASE_URL")

_logger = logging.getLogger(__name__)


class ElasticRunners:
    """Starts Jobs that run runners.

    Args:
        jobs: The Hub's.
        budget: How many at once, and for how much in 24 hours.
        namespace: The account that pays.
        flavor: The machine; None for the cheapest that is large enough.
        requirement: The dynquant that a Job installs.
        environment: Of this process; a Job gets the settings of a runner from it.
        waiting: The requests that no live runner can take, those first whose turn it is.
        needs: The needs of a request.
        now: The time.
    """

    def __init__(
        self,
        jobs: HubJobs,
        *,
        budget: Budget,
        namespace: str,
        flavor: str | None,
        requirement: str,
        environment: Mapping[str, str],
        waiting: Callable[[], Iterable[JobRequest]],
        needs: Callable[[JobRequest], Needs],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._jobs = jobs
        self._budget = budget
        self._namespace = namespace
        self._flavor = flavor
        self._command = job_command(requirement, ["runner", "--until-idle", str(_IDLE_MINS)])
        self._variables = {name: environment[name] for name in _PASSED_ON if environment.get(name)}
        self._secrets = {name: environment[name] for name in _SECRETS if environment.get(name)}
        self._labels = runner_labels(environment)
        self._waiting = waiting
        self._needs = needs
        self._now = now
        self._said = ""

    def do_round(self) -> RentedJob | None:
        """Start a Job, if work waits for one and the budget allows it; the Job that was started.

        Raises:
            HubJobError: The Hub starts none, such as without credits.
            HubUnavailableError: It does not answer.
        """
        waiting = list(self._waiting())
        if not waiting:
            return None
        recent = self._recent()
        if (reason := hindrance(recent, self._budget)) is not None:
            self._say(reason)
            return None
        limit = budget_left_micro_usd(recent, self._budget)
        for request in waiting:
            try:
                needs, flavors = self._needs(request), self._jobs.flavors()
                offer = offer_for(needs, flavors, name=self._flavor, max_micro_usd=limit)
            except RequestError as error:  # another request may fit, and be cheaper
                self._say(f"No Job starts for '{request.model}'. {error}")
                continue
            job, is_new = self._jobs.start(
                self._command,
                flavor=offer.flavor.name,
                timeout_secs=offer.timeout_secs,
                labels=self._labels,
                more_labels=price_labels(offer),
                environment=self._variables,
                secrets=self._secrets,
                namespace=self._namespace,
                at_once=self._budget.at_once,
            )
            if not is_new or self._is_one_too_many(job):
                return None
            worst = dollars(offer.worst_micro_usd)
            self._say(f"Started a runner on '{job.flavor}', for at most {worst}: {job.url}")
            return job
        return None

    def _is_one_too_many(self, job: RentedJob) -> bool:
        """Cancel a Job if another process started one at the same time and left no money for it."""
        recent = self._recent()
        older = [each for each in recent if (each.created_at, each.id) <= (job.created_at, job.id)]
        if spent_micro_usd(older) <= self._budget.micro_usd_per_day:
            return False
        self._jobs.cancel(job)
        return True

    def _recent(self) -> list[RentedJob]:
        return recent(self._jobs, self._namespace, self._labels, now=self._now)

    def _say(self, sentence: str) -> None:
        """Log what happens, once while it stays the same."""
        if sentence != self._said:
            _logger.info("%s", sentence)
        self._said = sentence


def recent(
    jobs: HubJobs,
    namespace: str,
    labels: Mapping[str, str],
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> list[RentedJob]:
    """The Jobs with these labels of the last 24 hours, and those that run, the oldest first."""
    since = now() - timedelta(days=1)
    found = jobs.listed(namespace, labels)
    return [job for job in found if job.created_at >= since or not job.stage.is_over]


def serve_elastic(settings: Settings, *, requirement: str) -> None:
    """Start Jobs while work waits, until SIGTERM or Ctrl-C; Jobs that run then go on.

    Raises:
        InvalidOptionError: The settings name no budget, or no queue that a Job can reach.
        HubJobError: The token may start no Jobs in the account that pays.
    """
    budget = _budget(settings)
    configure_logging(
        settings.home, secrets=secrets_in(os.environ), runner_id=settings.runner_id, verbose=True
    )
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    account = HubPublisher().account()
    namespace = settings.hub_jobs_namespace or account.name
    account.require_may_run_jobs(namespace)
    flavor = settings.hub_jobs_flavor
    with _waiting_in(settings) as waiting:
        runners = ElasticRunners(
            HubJobs(),
            budget=budget,
            namespace=namespace,
            flavor=None if flavor == "auto" else flavor,
            requirement=requirement,
            environment=os.environ,
            waiting=waiting,
            needs=partial(_needs, settings.inbox_private_sources),
        )
        while not stopping.is_set():
            try:
                runners.do_round()
            except DynquantError as error:  # credits, too, may be there later
                _logger.warning("%s", error)
            stopping.wait(_ROUND_SECS)


def runner_labels(environment: Mapping[str, str]) -> dict[str, str]:
    """The labels by which runners of one queue count together, whatever process starts them."""
    # Without the password in the URL: a hash of it could be guessed at.
    database = urlsplit(environment.get("DYNQUANT_DATABASE_URL", ""))
    queue = environment.get("DYNQUANT_INBOX_REPO") or f"{database.hostname}{database.path}"
    return {LABEL: hashlib.sha256(f"runner of {queue}".encode()).hexdigest()[:32]}


def _budget(settings: Settings) -> Budget:
    """The limits of the settings.

    Raises:
        InvalidOptionError: There is no budget, or no queue that a Job can reach.
    """
    if settings.hub_jobs_micro_usd_per_day is None:
        raise InvalidOptionError(
            "Elastic runners need a budget: set DYNQUANT_HUB_JOBS_DOLLARS_PER_DAY."
        )
    if settings.database_url.startswith("sqlite:"):
        if settings.inbox_repo is None:
            raise InvalidOptionError(
                "A Job of the Hub cannot reach the database of this machine. Set "
                "DYNQUANT_INBOX_REPO, or DYNQUANT_DATABASE_URL to a PostgreSQL that the Hub's "
                "machines reach."
            )
        if settings.hub_jobs_at_once > 1:
            raise InvalidOptionError(
                "Several Jobs at once would all do the same requests of an inbox. Unset "
                "DYNQUANT_HUB_JOBS_AT_ONCE, or set DYNQUANT_DATABASE_URL to a PostgreSQL."
            )
    return Budget(
        at_once=settings.hub_jobs_at_once,
        micro_usd_per_day=settings.hub_jobs_micro_usd_per_day,
    )


@contextmanager
def _waiting_in(settings: Settings) -> Iterator[Callable[[], list[JobRequest]]]:
    """Looks at the queue for jobs that no live runner can take, or else at the inbox."""
    if settings.database_url.startswith("sqlite:"):
        assert settings.inbox_repo is not None
        inbox = HubInbox(settings.inbox_repo)
        yield lambda: [each.request for each in inbox.pending() if each.request is not None]
        return
    with closing(DatabaseBoard(settings.database_url)) as board:
        yield partial(_without_a_runner, board)


def _without_a_runner(board: DatabaseBoard) -> list[JobRequest]:
    """Jobs that wait or whose runner died, and that no live runner has the memory for."""
    alive = {each.id: each.memory_bytes for each in board.runners() if each.is_alive}
    memory_bytes = max(alive.values(), default=-1)
    return [
        job.request
        for job in board.list(states={JobState.WAITING, JobState.RUNNING})
        if (job.state is JobState.WAITING or job.runner not in alive)
        and (job.needed_memory_bytes or 0) > memory_bytes
    ]


@lru_cache(maxsize=1_000)  # a request that the budget keeps waiting is looked at every round
def _needs(private_sources: tuple[str, ...], request: JobRequest) -> Needs:
    """The needs of a request, from its model's headers; a stranger names public models alone.

    Raises:
        RequestError: The model cannot be converted.
    """
    recipe = request.recipe
    may_be_private = is_ours(request.requester) or request.model in private_sources
    with HubModels(token=None if may_be_private else False) as hub:
        source = hub.fetch_headers(
            request.model, revision=request.revision, allow_quantized=recipe.dequantize
        )
        return needs_of(header_inventory(source).inventory.within(recipe.menu), recipe)
