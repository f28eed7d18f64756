"""The engine's companions, and how they end."""

from __future__ import annotations

import threading
from pathlib import Path

from dynquant.runner import service
from dynquant.settings import Settings
from dynquant.watch.status import WatchRequests, WatchStatus
from tests.waiting import PATIENCE_SECS


class FakeWatch:
    """A watcher with a long sweep, which ends on a request to stop if it `listens`."""

    def __init__(self, *, listens: bool) -> None:
        self.listens = listens
        self.sweeping = threading.Event()
        self.told = threading.Event()
        self.ended = threading.Event()

    def do_round(self) -> None:
        self.sweeping.set()
        (self.told if self.listens else self.ended).wait()

    def stop(self) -> None:
        self.told.set()

    def status(self) -> WatchStatus:
        raise NotImplementedError

    def carry_out(self, requests: WatchRequests) -> None:
        raise NotImplementedError


def serve_and_stop(watch: FakeWatch, folder: Path) -> None:
    settings = Settings(
        home=folder, database_url=f"sqlite:///{folder / 'jobs.sqlite'}", runner_id="mac"
    )
    with service._companions(settings, threading.Event(), watch):
        assert watch.sweeping.wait(PATIENCE_SECS)


def test_a_runner_that_stops_has_its_sweep_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_STOP_SECS", 1e6)  # it waits for the sweep to end
    watch = FakeWatch(listens=True)
    serve_and_stop(watch, tmp_path)
    assert watch.told.is_set()


def test_a_round_that_the_hub_holds_up_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_STOP_SECS", 0.1)
    watch = FakeWatch(listens=False)
    try:
        serve_and_stop(watch, tmp_path)  # and the sweep does not end
    finally:
        watch.ended.set()
