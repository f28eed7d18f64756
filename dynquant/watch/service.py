"""The watcher with everything behind it, for commands, runners and pages alike."""

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
from dynquant.quant.header_inventory import header_inventory, is_known_family
from dynquant.settings import Settings
from dynquant.watch import ScheduledSweeps, Watcher, parse_cron
from dynquant.watch.config import parse_watch_config
from dynquant.watch.records import SweepReport
from dynquant.watch.rules import WatchConfig, may_cover
from dynquant.watch.state import DatabaseWatchState
from dynquant.watch.status import WatchAct, WatchRequests, WatchStatus
from dynquant.watch.targets import MemoryFootprint, footprint_of

__all__ = ["WatchService"]

_NUM_REPORTS = 10
_NUM_LATEST = 60
_MAX_WAITING = 1_000
"""Repos that a webhook named and that nobody has looked at yet; a sweep finds the others."""
_SWEEPS_ALREADY = "A sweep runs already. Wait until it has ended."

_logger = logging.getLogger(__name__)


class WatchService:
    """The watcher of one machine.

    Args:
        settings: Where its database and its cache are, and when it sweeps.
        config: File with the rules; read again for every sweep.
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).

    Raises:
        InvalidOptionError: The database or the schedule makes no sense.
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
        self._looks = _InTurn()

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
        """Let go of the database."""
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
        """Sweep if it is time; see `ScheduledSweeps`."""
        return self._sweeps.do_round()

    def sweep_now(self) -> SweepReport:
        """Sweep whatever the schedule says.

        Raises:
            RequestError: Another sweep runs, the watcher is paused, or its rules cannot be read.
            RetryLaterError: The database does not answer.
        """
        self._require_turn()
        if (report := self._sweeps.do_now()) is None:
            raise RequestError(_SWEEPS_ALREADY)
        return report

    def stop(self) -> None:
        """Have a sweep that runs end soon, and begin no other."""
        self._sweeps.stop()

    # For pages and webhooks, which wait for nothing.

    def status(self) -> WatchStatus:
        """What people are shown.

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

    def sweep(self) -> str:
        """Begin a sweep; what to tell who asked.

        Raises:
            RequestError: One runs, the watcher is paused, or its rules cannot be read.
            RetryLaterError: The database does not answer.
        """
        self._require_turn()
        _in_background(self._sweeps.do_now)
        return ""

    def pause(self) -> str:
        """Sweep no more, until `resume`; a sweep that runs stops."""
        self.state.set_paused(True)
        return ""

    def resume(self) -> str:
        """Sweep by schedule again."""
        self.state.set_paused(False)
        return ""

    def covers(self, repo_id: str) -> bool:
        """Whether some rule may speak of a repo of this name.

        Raises:
            InvalidOptionError: The rules cannot be read.
        """
        return may_cover(repo_id, self.rules())

    def look_at(self, repo_id: str) -> None:
        """Look at one model soon, without waiting for a sweep to find it."""
        self._looks.do(repo_id, self._look_at)

    def run_errands(self, errands: WatchRequests) -> None:
        """Do what a Space asks for.

        Raises:
            RequestError: It cannot be done now.
            RetryLaterError: The database does not answer.
        """
        for repo_id in errands.look_at:
            self.look_at(repo_id)
        if errands.act is not None:
            {
                WatchAct.SWEEP: self.sweep,
                WatchAct.PAUSE: self.pause,
                WatchAct.RESUME: self.resume,
            }[errands.act]()

    def _require_turn(self) -> None:
        self.rules()
        if self.state.is_paused:
            raise RequestError("The watcher is paused. Let it go on first.")
        if self.state.is_sweeping:
            raise RequestError(_SWEEPS_ALREADY)

    def _footprint_of(self, on_try: Callable[[], None], candidate: Candidate) -> MemoryFootprint:
        """What running a model takes, from its config and the headers of its weights."""
        with opened_briefly(endpoint=self._endpoint, on_try=on_try) as hub:
            anatomy = header_inventory(hub.fetch_headers(candidate.repo_id, revision=candidate.sha))
        return footprint_of(anatomy.inventory, cache_bytes_per_token=anatomy.cache_bytes_per_token)

    def _sweep(self, now: datetime, may_go_on: Callable[[], bool]) -> SweepReport:
        return self.watcher().sweep(now, may_go_on=may_go_on)

    def _look_at(self, repo_id: str) -> None:
        self.watcher().sweep_repo(
            repo_id, datetime.now(UTC), may_go_on=lambda: not self.state.is_paused
        )


class _InTurn:
    """Does things with names in a thread, one after the other, each name once while it waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[str] = set()
        self._queue: queue.Queue[tuple[str, Callable[[str], None]]] = queue.Queue()
        self._thread: threading.Thread | None = None

    def do(self, name: str, action: Callable[[str], None]) -> None:
        with self._lock:
            if name in self._waiting or len(self._waiting) >= _MAX_WAITING:
                return
            self._waiting.add(name)
            self._queue.put((name, action))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="looks", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            name, action = self._queue.get()
            with self._lock:
                self._waiting.discard(name)
            _do(partial(action, name))


def _in_background(action: Callable[[], object]) -> None:
    threading.Thread(target=_do, args=(action,), name="sweep", daemon=True).start()


def _do(action: Callable[[], object]) -> None:
    """Do it, and log why it failed: nobody waits for what comes of it."""
    try:
        action()
    except DynquantError as error:
        _logger.warning("%s", error)
    except Exception:
        _logger.exception("The watcher failed")
