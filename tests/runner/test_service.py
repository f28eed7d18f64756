"""What stands around the engine, and how it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from dynquant.core.watch_status import Errands, WatchStatus
from dynquant.runner import service
from dynquant.settings import Settings

PATIENCE_SECS = 30.0


class FakeWatch:
    """A watcher with a long sweep, which ends when it is told to stop if it `listens`."""

    def __init__(self, *, listens: bool) -> None:
        self.listens = listens
        self.sweeping = threading.Event()
        self.told = threading.Event()
        self.ended = threading.Event()

    def do_round(self) -> None:
        self.sweeping.set()
        (self.told if self.listens else self.ended).wait(PATIENCE_SECS)

    def stop(self) -> None:
        self.told.set()

    def status(self) -> WatchStatus:
        raise NotImplementedError

    def run_errands(self, errands: Errands) -> None:
        raise NotImplementedError


def secs_to_leave(watch: FakeWatch, folder: Path) -> float:
    settings = Settings(
        home=folder, database_url=f"sqlite:///{folder / 'jobs.sqlite'}", runner_id="mac"
    )
    with service._surroundings(settings, threading.Event(), watch):
        assert watch.sweeping.wait(PATIENCE_SECS)
        began_secs = time.monotonic()
    return time.monotonic() - began_secs


def test_a_runner_that_stops_has_its_sweep_stop(tmp_path):
    assert secs_to_leave(FakeWatch(listens=True), tmp_path) < service._STOP_SECS / 2


def test_a_round_that_the_hub_holds_up_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_STOP_SECS", 0.5)
    watch = FakeWatch(listens=False)
    try:
        assert 0.5 <= secs_to_leave(watch, tmp_path) < PATIENCE_SECS / 2
    finally:
        watch.ended.set()
