"""One sweep as a process of its own, which can be made to die.

    python -m tests.watch.driver HUB_URL DATABASE_URL NOW RULES [MOMENT:NUMBER]

RULES is a file. At the NUMBERth MOMENT (`looked`, `ordered`, `queued` or `submitted`) the process
kills itself, as at a loss of power. Otherwise it prints its report as JSON, with its peak memory.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import psutil

from dynquant.hub.new_models import HubNewModels
from dynquant.jobs.board import DatabaseBoard
from dynquant.watch.config import parse_watch_config
from dynquant.watch.records import report_to_json
from dynquant.watch.rules import Decision
from dynquant.watch.state import DatabaseWatchState
from dynquant.watch.watcher import Watcher

MOMENTS = {"looked": "look_up", "ordered": "order", "queued": "submit", "submitted": "submitted"}
"""Moment → the method whose call precedes it."""


class Mortal:
    """Passes everything on, and dies after some call of one method."""

    def __init__(self, inner: Any, method: str, number: int) -> None:
        self._inner = inner
        self._method = method
        self._number = number

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name != self._method:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            result = found(*arguments, **options)
            self._number -= 1
            if self._number == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


class Memory:
    """The peak memory of the process, sampled at every hundredth model."""

    def __init__(self) -> None:
        self.most = 0
        self._process = psutil.Process()
        self._num_seen = 0

    def look(self, _decision: Decision) -> None:
        if self._num_seen % 100 == 0:
            self.most = max(self.most, self._process.memory_info().rss)
        self._num_seen += 1


def main(hub_url: str, database_url: str, now: str, rules: str, death: str = "none:0") -> None:
    moment, _, number = death.partition(":")
    method = MOMENTS.get(moment, "")
    mortals: list[Any] = [
        Mortal(each, method, int(number))
        for each in (
            HubNewModels(endpoint=hub_url, token=False, sleep=lambda _: None),
            DatabaseBoard(database_url),
            DatabaseWatchState(database_url),
        )
    ]
    hub, board, state = mortals
    config = parse_watch_config(Path(rules).read_text(), name="watch.yaml")
    watcher = Watcher(hub, cast(Any, board), state, config, supports=lambda kind: kind != "alien")
    memory = Memory()
    report = watcher.sweep(datetime.fromisoformat(now), on_decision=memory.look)
    sys.stdout.write(json.dumps(report_to_json(report) | {"max_rss": memory.most}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
