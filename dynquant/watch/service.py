"""The watcher with its database, Hub and schedule, for commands, runners and pages."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType

from dynquant.errors import DynquantError, InvalidOptionError, RequestError
from dynquant.hub.mentions import HubMentions
from dynquant.hub.models import opened_briefly
from dynquant.hub.new_models import HubNewModels
from dynquant.jobs.board import DatabaseBoard
from dynquant.model.candidate import Candidate
from dynquant.quant.families import is_known_family
from dynquant.quant.header_inventory import header_inventory
from dynquant.settings import Settings
from dynquant.watch.config import WatchConfig, parse_watch_config
from dynquant.watch.records import SweepReport
from dynquant.watch.rules import may_cover
from dynquant.watch.schedule import ScheduledSweeps, parse_cron
from dynquant.watch.state import DatabaseWatchState
from dynquant.watch.status import WatchAct, WatchRequests, WatchStatus
from dynquant.watch.targets import MemoryFootprint, footprint_of
from dynquant.watch.watcher import Watcher

__all__ = ["WatchService"]

_NUM_REPORTS = 10
_NUM_LATEST = 60
_MAX_WAITING = 1_000
"""Repos in the queue of looks that webhooks asked for; a sweep finds the others."""
_SWEEPS_ALREADY = "A sweep runs already. Wait until it has ended."

_logger = logging.getLogger(__name__)


class WatchService:
    """The watcher of one machine.

    Args:
        settings: Its database, and its schedule.
        config: File with the rules; read again for every sweep.
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).

    Raises:
        InvalidOptionError: The database cannot be used, or the schedule is malformed.
        RetryLaterError: The database does not answer.
    """

    def __init__(self, settings: Settings, config: Path, *, endpoint: str | None = None) -> None:
        self._settings = settings
        self._config = config
        self._endpoint = endpoint
        self._cron = parse_cron(settings.watch_cron)
        self._exits = ExitStack()
        self.state = DatabaseWatchState(settings.database_url)
        self._exits.callback(self.state.close)
        self._board = DatabaseBoard(settings.database_url)
        self._exits.callback(self._board.close)
        self._sweeps = ScheduledSweeps(self.state, cron=self._cron, sweep=self._sweep)
        self._looks = _LookQueue(self._look_at)

    def __enter__(self) -> WatchService:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._exits.close()

    def rules(self) -> WatchConfig:
        """The rules as they are now.

        Raises:
            InvalidOptionError: They cannot be read; says where.
        """
        try:
            content = self._config.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidOptionError(
                f"The file '{self._config.name}' with the watcher's rules cannot be read. Pass "
                "another one."
            ) from error
        return parse_watch_config(content, name=self._config.name)

    def watcher(self) -> Watcher:
        """The watcher with the rules as they are now.

        Raises:
            InvalidOptionError: They cannot be read; says where.
        """
        hub = HubNewModels(endpoint=self._endpoint)
        return Watcher(
            hub,
            self._board,
            self.state,
            self.rules(),
            supports=is_known_family,
            footprint_of=partial(self._footprint_of, hub.count),
            mentioner=HubMentions(endpoint=self._endpoint),
        )

    def do_round(self) -> SweepReport | None:
        """Sweep if a sweep is due; see `ScheduledSweeps`."""
        return self._sweeps.do_round()

    def sweep_now(self) -> SweepReport:
        """Sweep now, whatever the schedule says.

        Raises:
            RequestError: Another sweep runs, the watcher is paused, or its rules cannot be read.
            RetryLaterError: The database does not answer.
        """
        self._require_turn()
        if (report := self._sweeps.do_now()) is None:
            raise RequestError(_SWEEPS_ALREADY)
        return report

    def stop(self) -> None:
        """End a running sweep soon, and begin no other."""
        self._sweeps.stop()

    # For pages and webhooks: these return at once.

    def status(self) -> WatchStatus:
        """The status for the page Watcher.

        Raises:
            RetryLaterError: The database does not answer.
        """
        config, problem = None, ""
        try:
            config = self.rules()
        except InvalidOptionError as error:
            problem = str(error)
        return WatchStatus(
            config=config,
            problem=problem,
            cron=self._cron,
            is_paused=self.state.is_paused,
            is_sweeping=self.state.is_sweeping,
            reports=self.state.reports(limit=_NUM_REPORTS),
            latest=self.state.latest(limit=_NUM_LATEST),
        )

    def control(self, act: WatchAct) -> str:
        """Carry out an operator's command, without waiting for a sweep; a message for the page.

        Raises:
            RequestError: A sweep runs, the watcher is paused, or its rules cannot be read.
            RetryLaterError: The database does not answer.
        """
        if act is WatchAct.SWEEP:
            self._require_turn()
            _in_background(self._sweeps.do_now)
        else:
            self.state.set_paused(act is WatchAct.PAUSE)
        return ""

    def covers(self, repo_id: str) -> bool:
        """Whether a rule may cover a repo of this name.

        Raises:
            InvalidOptionError: The rules cannot be read.
        """
        return may_cover(repo_id, self.rules())

    def look_at(self, repo_id: str) -> None:
        """Look at one model soon, without waiting for the next sweep."""
        self._looks.add(repo_id)

    def carry_out(self, requests: WatchRequests) -> None:
        """Carry out the requests of a Space.

        Raises:
            RequestError: A request cannot be carried out now.
            RetryLaterError: The database does not answer.
        """
        for repo_id in requests.look_at:
            self.look_at(repo_id)
        if requests.act is not None:
            self.control(requests.act)

    def _require_turn(self) -> None:
        self.rules()
        if self.state.is_paused:
            raise RequestError("The watcher is paused. Resume it first.")
        if self.state.is_sweeping:
            raise RequestError(_SWEEPS_ALREADY)

    def _footprint_of(self, on_try: Callable[[], None], candidate: Candidate) -> MemoryFootprint:
        """The memory footprint of a model, from its config and the headers of its weights."""
        with opened_briefly(endpoint=self._endpoint, on_try=on_try) as hub:
            found = header_inventory(hub.fetch_headers(candidate.repo_id, revision=candidate.sha))
        return footprint_of(found.inventory, cache_bytes_per_token=found.cache_bytes_per_token)

    def _sweep(self, now: datetime, may_go_on: Callable[[], bool]) -> SweepReport:
        return self.watcher().sweep(now, may_go_on=may_go_on)

    def _look_at(self, repo_id: str) -> None:
        self.watcher().sweep_repo(
            repo_id, datetime.now(UTC), may_go_on=lambda: not self.state.is_paused
        )


class _LookQueue:
    """Looks at repos in a thread, one after the other; a repo waits in the queue once."""

    def __init__(self, look_at: Callable[[str], None]) -> None:
        self._look_at = look_at
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._queue: queue.Queue[str] = queue.Queue()
        self._thread: threading.Thread | None = None

    def add(self, repo_id: str) -> None:
        with self._lock:
            if repo_id in self._waiting or len(self._waiting) >= _MAX_WAITING:
                return
            self._waiting.add(repo_id)
            self._queue.put(repo_id)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="looks", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            repo_id = self._queue.get()
            with self._lock:
                self._waiting.discard(repo_id)
            _do(partial(self._look_at, repo_id))


def _in_background(action: Callable[[], object]) -> None:
    threading.Thread(target=_do, args=(action,), name="sweep", daemon=True).start()


def _do(action: Callable[[], object]) -> None:
    """Run a background task; its errors go to the log, as no caller waits for it."""
    try:
        action()
    except DynquantError as error:
        _logger.warning("%s", error)
    except Exception:
        _logger.exception("The watcher failed")
