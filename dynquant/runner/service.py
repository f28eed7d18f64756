"""A runner as a service: the engine, and beside it the inbox, the live board and the log."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import psutil

from dynquant.errors import DynquantError
from dynquant.hub.client_environment import check_connection, check_token
from dynquant.hub.datasets import HubDatasets
from dynquant.hub.default_namespace import default_namespace
from dynquant.hub.inbox import HubInbox
from dynquant.hub.models import HubModels
from dynquant.hub.published import HubRepos
from dynquant.hub.publishing import HubPublisher
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.engine import JobEngine
from dynquant.jobs.job import JobState
from dynquant.logs import configure_logging, secrets_in
from dynquant.runner.inbox_policy import InboxPolicy
from dynquant.runner.inbox_worker import Announcer, FoundSource, InboxWorker
from dynquant.runner.job_steps import JobSteps
from dynquant.runner.live_board import LiveBoard, board_snapshot
from dynquant.runner.machine import awake, chip_name, keep_memory_flat, usable_memory_bytes
from dynquant.runner.notify import notify
from dynquant.runner.reach import reach, statement
from dynquant.settings import Settings
from dynquant.texts.corpus import Corpus
from dynquant.watch.public import public_jobs, public_status
from dynquant.watch.status import WatchRequests, WatchStatus, status_to_json

__all__ = ["Watch", "serve"]

_ROUND_SECS = 5.0
_STOP_SECS = 3.0
"""How long a stopping runner waits for rounds that are under way."""
_MAX_SHOWN = 500
_REPEAT_SECS = 60.0
_ERRANDS_SECS = 20.0
"""Between two posts to a Space when nothing changes: sooner where it may have requests."""

_logger = logging.getLogger(__name__)


class Watch(Protocol):
    """The watcher that runs beside the engine; see `watch.service.WatchService`."""

    def do_round(self) -> object:
        """Sweep if it is time."""
        ...

    def stop(self) -> None:
        """Have a sweep that runs end soon, and begin no other."""
        ...

    def status(self) -> WatchStatus:
        """The watcher's status for display."""
        ...

    def carry_out(self, requests: WatchRequests) -> None:
        """Do what a Space asks for."""
        ...


def serve(
    settings: Settings, *, watch: Watch | None = None, until_idle_mins: float | None = None
) -> None:
    """Take and do jobs until SIGTERM or Ctrl-C; then running jobs are queued again.

    Args:
        settings: Of this machine.
        watch: The watcher, if there are rules for it.
        until_idle_mins: End after so long without a job, too.

    Raises:
        InvalidOptionError: The database or the environment's settings of the Hub cannot be used,
            or another process is this runner.
        RetryLaterError: The database does not answer at the start.
    """
    check_connection()
    check_token()
    configure_logging(
        settings.home,
        secrets=secrets_in(os.environ),
        runner_id=settings.runner_id,
        verbose=True,
        all_to_stderr=until_idle_mins is not None,
    )
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    keep_memory_flat()
    _log_confinement()
    memory_bytes = settings.memory_bytes or usable_memory_bytes(psutil.virtual_memory().total)
    engine = JobEngine(
        settings,
        job_steps(settings, memory_bytes=memory_bytes),
        memory_bytes=memory_bytes,
        chip=chip_name(),
    )
    with _companions(settings, stopping, watch, until_idle_mins):
        engine.run(stopping)


def job_steps(settings: Settings, *, memory_bytes: int) -> JobSteps:
    """The steps of jobs, with the settings of this machine."""
    return JobSteps(
        home=settings.home,
        publisher=HubPublisher(),
        texts=Corpus(open_dataset=HubDatasets().open, allow_files=settings.local_texts),
        open_hub=lambda: HubModels(
            cache_dir=settings.cache_dir, max_cache_bytes=settings.cache_bytes
        ),
        max_memory_bytes=memory_bytes,
    )


@contextmanager
def _companions(
    settings: Settings,
    stopping: threading.Event,
    watch: Watch | None,
    until_idle_mins: float | None = None,
) -> Iterator[None]:
    """Run the inbox, the live board and other companions of the engine, each in its own thread."""
    board = DatabaseBoard(
        settings.database_url, daily_limit=settings.daily_limit, published=HubRepos()
    )
    sleep_guard = _SleepGuard(board, settings.runner_id)
    announcer = Announcer(
        board, runner_id=settings.runner_id, memory=settings.home / "told.txt", tell=notify
    )
    rounds: list[Callable[[], object]] = [announcer.do_round, sleep_guard.do_round]
    if watch is not None:
        rounds.append(watch.do_round)
    if until_idle_mins is not None:
        rounds.append(
            _IdleGuard(board, settings.runner_id, 60 * until_idle_mins, stopping).do_round
        )
    if settings.inbox_repo is not None:
        rounds.append(
            InboxWorker(
                HubInbox(settings.inbox_repo),
                board,
                policy=InboxPolicy(
                    default_destination=default_namespace(settings.publish_to),
                    destinations=settings.inbox_destinations,
                    private_sources=settings.inbox_private_sources,
                ),
                memory=settings.home / "mail.txt",
                look_up=_look_up,
            ).do_round
        )
    threads = [
        threading.Thread(target=_repeat, args=(each, stopping), daemon=True) for each in rounds
    ]
    with ExitStack() as exits:
        exits.callback(board.close)
        exits.callback(sleep_guard.close)
        if settings.space_url is not None and settings.space_secret is not None:
            live = LiveBoard(
                settings.space_url,
                settings.space_secret,
                settings.runner_id,
                lambda: _snapshot(board, watch),
                on_requests=None if watch is None else watch.carry_out,
                repeat_secs=_REPEAT_SECS if watch is None else _ERRANDS_SECS,
            )
            exits.enter_context(live)
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stopping.set()
            if watch is not None:
                watch.stop()
            # Rounds may be repeated, so a round that waits for the Hub is not waited for.
            until_secs = time.monotonic() + _STOP_SECS
            for thread in threads:
                thread.join(max(0.0, until_secs - time.monotonic()))


def _log_confinement() -> None:
    try:
        reached = reach()
    except (OSError, subprocess.SubprocessError):
        _logger.exception("No process could be started to test the sandbox")
        return
    _logger.log(logging.WARNING if reached else logging.INFO, "%s", statement(reached))


def _snapshot(board: DatabaseBoard, watch: Watch | None) -> dict[str, Any]:
    """The board for the Space, which is public."""
    jobs = board.list(limit=_MAX_SHOWN)
    shown = board_snapshot(jobs, board.runners())
    if watch is not None:
        shown["watch"] = status_to_json(public_status(watch.status(), public_jobs(jobs)))
    return shown


def _repeat(do_round: Callable[[], object], stopping: threading.Event) -> None:
    """Do rounds until `stopping`; a round that fails is repeated, and logged once."""
    was_failing = False
    while not stopping.is_set():
        try:
            do_round()
            was_failing = False
        except DynquantError as error:
            if not was_failing:
                _logger.warning("%s", error)
            was_failing = True
        except Exception:
            _logger.exception("A round failed; the next one is in %.0f seconds", _ROUND_SECS)
        stopping.wait(_ROUND_SECS)


class _SleepGuard:
    """Keeps the machine awake while this runner has a job."""

    def __init__(self, board: DatabaseBoard, runner_id: str) -> None:
        self._board = board
        self._runner_id = runner_id
        self._awake: ExitStack | None = None

    def do_round(self) -> None:
        """Look whether this runner has a job."""
        is_busy = _is_busy(self._board, self._runner_id)
        if is_busy and self._awake is None:
            self._awake = ExitStack()
            self._awake.enter_context(awake("dynquant is converting a model"))
        elif not is_busy:
            self.close()

    def close(self) -> None:
        """Let the machine sleep again."""
        if self._awake is not None:
            self._awake.close()
            self._awake = None


class _IdleGuard:
    """Ends a runner that has had no job for some time."""

    def __init__(
        self, board: DatabaseBoard, runner_id: str, idle_secs: float, stopping: threading.Event
    ) -> None:
        self._board = board
        self._runner_id = runner_id
        self._idle_secs = idle_secs
        self._stopping = stopping
        self._busy_at_secs = time.monotonic()

    def do_round(self) -> None:
        """Look whether this runner has a job, or has had none for long enough."""
        if _is_busy(self._board, self._runner_id):
            self._busy_at_secs = time.monotonic()
        elif time.monotonic() - self._busy_at_secs >= self._idle_secs:
            _logger.info("This runner ends: it had no job for %.0f minutes", self._idle_secs / 60)
            self._stopping.set()


def _is_busy(board: DatabaseBoard, runner_id: str) -> bool:
    """Whether a runner has a job."""
    return any(job.runner == runner_id for job in board.list(states={JobState.RUNNING}))


def _look_up(model: str, revision: str | None, as_operator: bool) -> FoundSource:  # noqa: FBT001
    """A model as it is visible without a token, or with the token of this machine."""
    with HubModels(token=None if as_operator else False) as hub:
        found = hub.look_up(model, revision=revision)
    return FoundSource(found.repo, found.sha, found.is_private)
