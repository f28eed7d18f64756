"""A board on which one value is not what it should be: refused whole, or shown."""

from __future__ import annotations

import copy
import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any, cast

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute

from dynquant.errors import RequestError
from dynquant.hub.search import HubSearch
from dynquant.jobs.job import Attempt, JobState, PublishedRepo, StepProgress
from dynquant.runner.live_board import board_snapshot
from dynquant.watch.status import status_to_json
from dynquant.web.finished_models import FinishedModels
from dynquant.web.live import add_live_routes
from dynquant.web.remote_jobs import RemoteJobs
from dynquant.web.service import Service
from dynquant.web.settings import WebSettings
from dynquant.web.snapshots import Snapshots
from dynquant.web.space_watch import SpaceWatch
from tests.fakes import FakeRepos
from tests.runner.test_live_board import make_job, make_runner
from tests.web.test_remote_jobs import FakeInbox
from tests.web.test_space_watch import make_status

pytestmark = pytest.mark.harden("web")

NOWHERE = "http://127.0.0.1:9"
STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**53,
    1e15,
    1e-300,
    "",
    "<b>\0\ud800\u202e",
    "9" * 30,
    "x" * 100_000,
    [],
    [[]],
    [None],
    {},
    {"x": 1},
)
WRITTEN = ("Infinity", "-Infinity", "NaN", "1e400", "1" + 400 * "0", "1" + 5_000 * "0")


def make_board() -> dict[str, Any]:
    """Jobs in every state that has fields of its own, a runner and its watcher."""
    at = make_job().submitted_at
    jobs = (
        make_job("a0", position=1, eta_secs=60.0),
        make_job(
            "a1",
            state=JobState.RUNNING,
            started_at=at,
            runner="mac-studio",
            needed_memory_bytes=10**9,
            progress=StepProgress(
                step="measure", fraction=0.5, eta_secs=9.0, layer="l", num_bytes=1, sentence="So."
            ),
        ),
        make_job(
            "a2",
            state=JobState.PUBLISHED,
            started_at=at,
            ended_at=at,
            results=(PublishedRepo(repo_id="you/M", commit_sha="a" * 40),),
        ),
        make_job(
            "a3",
            state=JobState.REFUSED,
            ended_at=at,
            reason_code="text",
            sentence="No.",
            history=(
                Attempt(
                    number=1,
                    state=JobState.FAILED,
                    step="encode",
                    reason_code="text",
                    sentence="No.",
                    runner="mac-studio",
                    started_at=at,
                    ended_at=at,
                ),
            ),
        ),
    )
    board = {"runner_id": "mac-studio", **board_snapshot(jobs, [make_runner()])}
    return json.loads(json.dumps(board | {"watch": status_to_json(make_status())}))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the values of a board are."""
    if path:
        yield path
    if isinstance(value, dict | list):
        for name, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(each, (*path, name))


def with_value(board: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(board)
    inner: Any = changed
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return changed


def contents(board: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Each place with each strange value there; as JSON alone can write some of them."""
    for path in places(board):
        marked = json.dumps(with_value(board, path, "a mark"))
        for value in (*map(json.dumps, STRANGE), *WRITTEN):
            yield f"{path}: {value[:40]}", marked.replace('"a mark"', value).encode()


def looked_at(snapshots: Snapshots) -> Iterator[str]:
    """All that open pages show of the boards."""
    search = HubSearch(endpoint=NOWHERE, token=False)
    service = Service(
        settings=WebSettings(),
        jobs=RemoteJobs(FakeInbox(), snapshots, FakeRepos()),
        sign_in=cast("Any", None),
        model_lookup=cast("Any", None),
        search=search,
        finished_models=FinishedModels(search, namespace=None),
        namespace=lambda: None,
        watch=SpaceWatch(snapshots),
    )
    app = FastAPI()
    add_live_routes(app, service)
    look = {route.path: route.endpoint for route in app.routes if isinstance(route, APIRoute)}
    for job in ("a0", "a1", "a2", "a3"):
        yield look["/live/job"](job=job).body.decode()
    yield look["/live/board"](words="a").body.decode()
    yield look["/live/board"](state="over").body.decode()
    yield look["/live/watcher"]().body.decode()


def test_the_board_itself_is_shown():
    snapshots = Snapshots()
    assert snapshots.take(json.dumps(make_board()).encode())
    shown = "".join(looked_at(snapshots))
    assert [each for each in ("mac-studio", "So.", "No.", "org/B") if each not in shown] == []


def test_a_strange_value_on_a_board_is_refused_or_shown_and_never_an_error(harden):
    ends: Counter[str] = Counter()
    lost: dict[str, str] = {}
    step = 1 if "DYNQUANT_HARDEN" in os.environ else 5
    for place, content in islice(contents(make_board()), 0, None, step):
        snapshots = Snapshots()
        try:
            snapshots.take(content)
            list(looked_at(snapshots))
            ends["handled"] += 1
        except RequestError:
            ends["refused"] += 1
        except Exception as error:  # noqa: BLE001  all are told together
            lost[repr(error)[:200]] = place
    for outcome, count in ends.items():
        harden(outcome, count)
    harden("lost", len(lost))
    assert lost == {}
    assert min(ends["refused"], ends["handled"]) > 100
