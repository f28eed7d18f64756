"""The watcher as a Space has it: a runner's posts tell of it, the answers bring requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from fastapi import FastAPI

from dynquant.errors import RequestError, RetryLaterError
from dynquant.runner.live_board import LiveBoard, board_snapshot
from dynquant.watch.records import SeenModel, SweepReport
from dynquant.watch.skips import Skip
from dynquant.watch.status import (
    WatchAct,
    WatchRequests,
    WatchStatus,
    requests_from_json,
    status_from_json,
    status_to_json,
)
from dynquant.watch.webhook import Webhook
from dynquant.web.site import add_runner_routes, add_webhook
from dynquant.web.snapshots import Snapshots
from dynquant.web.space_watch import SpaceWatch
from local_hub import LocalHub
from tests.local_hub.conftest import client_home, talk_to
from tests.runner.test_live_board import make_job, make_runner
from tests.waiting import PATIENCE_SECS, wait_until
from tests.watch.factories import make_config, make_rule
from tests.watch.scene import add_model
from tests.watch.test_webhook import SECRET as HUB_SECRET
from tests.watch.test_webhook import body
from tests.web.scene import served

__all__ = ["client_home", "talk_to"]

ROOT = Path(__file__).parents[2]
SECRET = "a-secret-of-the-space"


def make_status(**overrides: Any) -> WatchStatus:
    report = SweepReport(
        started_at=datetime(2026, 11, 25, 12, tzinfo=UTC),
        secs=1.5,
        num_seen=9,
        queued=("org/A",),
        skipped={Skip.QUANT: 8},
        num_calls=4,
    )
    fields: dict[str, Any] = {
        "config": make_config(
            make_rule("a", authors=("org",), memory_bytes=(16 << 30,), max_parameters=8 * 10**9),
            opt_out=("shy",),
        ),
        "cron": "*/15 * * * *",
        "reports": (report,),
        "latest": (
            SeenModel(repo_id="org/A", sha="a" * 40, fingerprint="f", job_id="c0ffee"),
            SeenModel(repo_id="org/B", sha="b" * 40, fingerprint="", skip=Skip.UNSUPPORTED),
        ),
    }
    return WatchStatus(**fields | overrides)


@dataclass
class Runner:
    """A runner that posts its watcher, and keeps its requests."""

    url: str
    status: WatchStatus | None = field(default_factory=make_status)
    requests: list[WatchRequests] = field(default_factory=list)
    num_rounds: int = 0

    def board(self) -> LiveBoard:
        return LiveBoard(
            self.url,
            SECRET,
            "mac-studio",
            self._snapshot,
            on_requests=self.requests.append,
            interval_secs=0.02,
            repeat_secs=0.0,
        )

    def wait_for_rounds(self) -> None:
        """Until the Space has answered another two posts."""
        enough = self.num_rounds + 3
        wait_until(lambda: self.num_rounds >= enough)

    def _snapshot(self) -> dict[str, Any]:
        self.num_rounds += 1
        shown = board_snapshot([make_job()], [make_runner()])
        return shown if self.status is None else shown | {"watch": status_to_json(self.status)}


@dataclass
class Space:
    url: str
    watch: SpaceWatch
    now: list[float]

    def post(self, content: bytes) -> int:
        headers = {"X-Webhook-Secret": HUB_SECRET}
        return requests.post(
            f"{self.url}/webhooks/hub", data=content, headers=headers, timeout=PATIENCE_SECS
        ).status_code


@pytest.fixture
def space() -> Iterator[Space]:
    now = [0.0]
    snapshots = Snapshots(clock=lambda: now[0])
    watch = SpaceWatch(snapshots)
    app = FastAPI()
    add_runner_routes(app, snapshots, SECRET, watch.collect)
    add_webhook(app, Webhook(HUB_SECRET, covers=watch.covers, look=watch.look_at))
    with served(app) as url:
        yield Space(url, watch, now)


def is_told(space: Space) -> bool:
    try:
        space.watch.status()
    except RetryLaterError:
        return False
    return True


def test_a_status_is_the_same_after_the_journey_but_for_who_opted_out():
    status = make_status()
    found = status_from_json(json.loads(json.dumps(status_to_json(status))))
    assert status.config is not None
    assert found == replace(status, config=replace(status.config, opt_out=()))
    broken = make_status(config=None, problem="watch.yaml, line 1: no.")
    assert status_from_json(status_to_json(broken)) == broken


def test_before_a_runner_has_told_of_a_watcher_nobody_can_say_anything(space):
    with pytest.raises(RetryLaterError, match="runs on a runner"):
        space.watch.status()
    assert space.post(body()) == 503
    plain = Runner(space.url, status=None)
    with plain.board():
        space.watch.control(WatchAct.PAUSE)
        plain.wait_for_rounds()
    assert plain.requests == []  # a runner without a watcher gets none
    assert space.watch.collect().act is WatchAct.PAUSE


def test_what_the_hub_posts_to_the_space_reaches_the_runner_once(space):
    runner = Runner(space.url)
    with runner.board():
        wait_until(lambda: is_told(space))
        assert space.post(body()) == 202
        assert space.post(body()) == 409
        assert space.post(body(repo={"name": "else/Model"})) == 403
        wait_until(lambda: runner.requests)
        runner.wait_for_rounds()
    assert runner.requests == [WatchRequests(look_at=("org/Model",))]


def test_an_operator_at_the_space_steers_the_watcher_of_the_runner(space):
    runner = Runner(space.url)
    with runner.board():
        wait_until(lambda: is_told(space))
        for act, number in ((WatchAct.SWEEP, 1), (WatchAct.PAUSE, 2)):
            assert "within half a minute" in space.watch.control(act)
            wait_until(lambda: len(runner.requests) == number)  # noqa: B023
        runner.status = make_status(is_paused=True)
        wait_until(lambda: space.watch.status().is_paused)
        with pytest.raises(RequestError, match="paused"):
            space.watch.control(WatchAct.SWEEP)
        space.watch.control(WatchAct.RESUME)
        wait_until(lambda: len(runner.requests) == 3)
    assert [each.act for each in runner.requests] == list(WatchAct)


def test_a_runner_that_has_gone_away_is_not_spoken_of_as_if_it_were_there(space):
    runner = Runner(space.url)
    with runner.board():
        wait_until(lambda: is_told(space))
    space.now[0] += 600
    with pytest.raises(RetryLaterError, match="in the last minutes"):
        space.watch.status()


@pytest.mark.slow
def test_a_real_runner_tells_the_space_of_its_watcher_and_carries_out_its_requests(
    space, tmp_path, talk_to
):
    (tmp_path / "watch.yaml").write_text(
        "rules: [{name: mine, authors: [org], bpw: [4.5], destination: you}]"
    )
    with LocalHub() as hub:
        talk_to(hub)
        hub.add_user("you", token="hf_you")
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_TOKEN": "hf_you",
            "DYNQUANT_HOME": str(tmp_path / "home"),
            "DYNQUANT_WATCH_CONFIG": str(tmp_path / "watch.yaml"),
            "DYNQUANT_WATCH_CRON": "0 0 1 1 *",
            "DYNQUANT_MEMORY_GB": "0.001",  # it takes no job
            "DYNQUANT_SPACE_URL": space.url,
            "DYNQUANT_SPACE_SECRET": SECRET,
        }
        with subprocess.Popen(
            [sys.executable, "-m", "dynquant", "runner"], cwd=ROOT, env=environment
        ) as runner:
            try:
                wait_until(lambda: is_told(space))
                wait_until(lambda: len(space.watch.status().reports) == 1)  # the first sweep
                add_model(hub, "org/Model", datetime.now(UTC))
                assert space.post(body()) == 202
                wait_until(lambda: space.watch.status().latest)
                assert space.watch.status().latest[0].repo_id == "org/Model"
            finally:
                runner.terminate()


@pytest.mark.parametrize(
    "raw", [{}, {"look_at": None, "act": None}, {"look_at": [], "act": "format"}, []]
)
def test_requests_that_are_malformed_are_refused(raw):
    with pytest.raises((KeyError, TypeError, ValueError)):
        requests_from_json(raw)
