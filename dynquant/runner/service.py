"""A runner as a service: the engine, and around it the mail, the live board and the log."""

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
from dynquant.runner.inbox_policy import MailPolicy
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
"""For the rounds that are under way when the runner stops."""
_MAX_SHOWN = 500
_REPEAT_SECS = 60.0
_ERRANDS_SECS = 20.0
"""Between two posts to a Space when nothing changes: sooner where it may have errands."""

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
        """What people are shown."""
        ...

    def run_errands(self, errands: WatchRequests) -> None:
        """Do what a Space asks for."""
        ...


def serve(settings: Settings, *, watch: Watch | None = None) -> None:
    """Take and do jobs until SIGTERM or Ctrl-C; what runs then is given back.

    Args:
        settings: How this machine takes part.
        watch: The watcher, if there are rules for it.

    Raises:
        InvalidOptionError: The database or what the environment says of the Hub cannot be used, or
            another process is this runner.
        RetryLaterError: The database does not answer at the start.
    """
    check_connection()
    check_token()
    configure_logging(
        settings.home,
        secrets=secrets_in(os.environ),
        runner_id=settings.runner_id,
        verbose=True,
    )
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    keep_memory_flat()
    _say_what_is_confined()
    memory_bytes = settings.memory_bytes or usable_memory_bytes(psutil.virtual_memory().total)
    engine = JobEngine(
        settings,
        job_steps(settings, memory_bytes=memory_bytes),
        memory_bytes=memory_bytes,
        chip=chip_name(),
    )
    with _surroundings(settings, stopping, watch):
        engine.run(stopping)


def job_steps(settings: Settings, *, memory_bytes: int) -> JobSteps:
    """The steps of jobs as this machine does them."""
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
def _surroundings(
    settings: Settings, stopping: threading.Event, watch: Watch | None
) -> Iterator[None]:
    """Everything beside the engine, each in a thread of its own; none of it can stop a job."""
    board = DatabaseBoard(
        settings.database_url, daily_limit=settings.daily_limit, published=HubRepos()
    )
    wakefulness = _Wakefulness(board, settings.runner_id)
    rounds: list[Callable[[], object]] = [
        Announcer(
            board,
            runner_id=settings.runner_id,
            memory=settings.home / "told.txt",
            tell=notify,
        ).do_round,
        wakefulness.do_round,
    ]
    if watch is not None:
        rounds.append(watch.do_round)
    if settings.inbox_repo is not None:
        inbox = HubInbox(settings.inbox_repo)
        rounds.append(
            InboxWorker(
                inbox,
                board,
                policy=_mail_policy(settings),
                memory=settings.home / "mail.txt",
                look_up=_look_up,
            ).do_round
        )
    threads = [
        threading.Thread(target=_repeat, args=(each, stopping), daemon=True) for each in rounds
    ]
    with ExitStack() as exits:
        exits.callback(board.close)
        exits.callback(wakefulness.close)
        if settings.space_url is not None and settings.space_secret is not None:
            live = LiveBoard(
                settings.space_url,
                settings.space_secret,
                settings.runner_id,
                lambda: _snapshot(board, watch),
                on_errands=None if watch is None else watch.run_errands,
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
            # Whatever a round does may be done again: one that waits for the Hub is left behind.
            until_secs = time.monotonic() + _STOP_SECS
            for thread in threads:
                thread.join(max(0.0, until_secs - time.monotonic()))


def _say_what_is_confined() -> None:
    try:
        reached = reach()
    except (OSError, subprocess.SubprocessError):
        _logger.exception("No process could be started to try what a model's may do")
        return
    _logger.log(logging.WARNING if reached else logging.INFO, "%s", statement(reached))


def _snapshot(board: DatabaseBoard, watch: Watch | None) -> dict[str, Any]:
    """What the Space is shown, which shows it to everybody."""
    jobs = board.list(limit=_MAX_SHOWN)
    shown = board_snapshot(jobs, board.runners())
    if watch is not None:
        shown["watch"] = status_to_json(public_status(watch.status(), public_jobs(jobs)))
    return shown


def _repeat(do_round: Callable[[], object], stopping: threading.Event) -> None:
    """Do rounds until `stopping`; one that fails is done again, and said once."""
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


class _Wakefulness:
    """Keeps the machine awake while this runner has a job."""

    def __init__(self, board: DatabaseBoard, runner_id: str) -> None:
        self._board = board
        self._runner_id = runner_id
        self._awake: ExitStack | None = None

    def do_round(self) -> None:
        """Look whether there is a job."""
        jobs = self._board.list(states={JobState.RUNNING})
        is_busy = any(job.runner == self._runner_id for job in jobs)
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


def _mail_policy(settings: Settings) -> MailPolicy:
    """What this machine takes from its inbox."""
    return MailPolicy(
        default_destination=default_namespace(settings.publish_to),
        destinations=settings.inbox_destinations,
        private_sources=settings.inbox_private_sources,
    )


def _look_up(model: str, revision: str | None, as_operator: bool) -> FoundSource:  # noqa: FBT001
    """A model as strangers see it, or as the token of this machine does."""
    with HubModels(token=None if as_operator else False) as hub:
        found = hub.look_up(model, revision=revision)
    return FoundSource(found.repo, found.sha, found.is_private)
