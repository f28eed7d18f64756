"""A Hub on this machine, a database, and the watcher between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dynquant.hub.new_models import HubNewModels
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.job import Job
from dynquant.watch.config import WatchConfig
from dynquant.watch.records import SweepReport
from dynquant.watch.rules import Decision
from dynquant.watch.state import DatabaseWatchState
from dynquant.watch.watcher import Watcher
from local_hub import LocalHub
from tests.local_hub.conftest import client_home, talk_to
from tests.watch.factories import make_config

__all__ = ["Scene", "client_home", "talk_to"]

START = datetime(2026, 11, 23, 12, tzinfo=UTC)


@dataclass
class Scene:
    """Times are minutes after the start."""

    hub: LocalHub
    url: str
    config: WatchConfig = field(default_factory=make_config)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.board: Any = DatabaseBoard(self.url)
        self.state: Any = DatabaseWatchState(self.url)
        self.decisions: dict[str, Decision] = {}
        self.pauses: list[float] = []

    def close(self) -> None:
        self.board.close()
        self.state.close()

    def at(self, minutes: float) -> datetime:
        return START + timedelta(minutes=minutes)

    @property
    def watcher(self) -> Watcher:
        new_models = HubNewModels(endpoint=self.hub.url, token=False, sleep=self.pauses.append)
        return Watcher(new_models, self.board, self.state, self.config, **self.options)

    def sweep(self, minutes: float, **options: Any) -> SweepReport:
        """Sweep, and note the decision about every model."""
        self.decisions = {}

        def note(decision: Decision) -> None:
            assert decision.repo_id not in self.decisions, f"{decision.repo_id} came twice"
            self.decisions[decision.repo_id] = decision

        return self.watcher.sweep(self.at(minutes), on_decision=note, **options)

    def skip(self, repo_id: str) -> str:
        """Why the last sweep skipped a model; empty if it did not."""
        return self.decisions[repo_id].skip or ""

    def jobs(self) -> dict[str, Job]:
        """Model → its latest job."""
        jobs = self.board.list(limit=10_000)
        return {job.request.model: job for job in reversed(jobs)}


@pytest.fixture
def hub(talk_to: Callable[[LocalHub], None]) -> Iterator[LocalHub]:
    with LocalHub() as hub:
        talk_to(hub)
        yield hub


@pytest.fixture
def scene(hub, tmp_path) -> Iterator[Scene]:
    scene = Scene(hub, f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    yield scene
    scene.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The requests and the memory of a sweep."""
    lines = [
        value
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
        for name, value in report.user_properties
        if name == "watch"
    ]
    if lines:
        terminalreporter.section("watcher")
        for line in lines:
            terminalreporter.write_line(line)
