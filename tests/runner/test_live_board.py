from __future__ import annotations

import json
import logging
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from dynquant.errors import RetryLaterError
from dynquant.jobs.job import Job, JobState, PublishedRepo, StepProgress
from dynquant.jobs.ports import RunnerStatus
from dynquant.jobs.request import JobRequest
from dynquant.model.naming import local_name
from dynquant.quant.options import RecipeOptions
from dynquant.runner import live_board
from dynquant.runner.live_board import LiveBoard, board_snapshot
from tests.post_server import Post, taking_posts
from tests.waiting import wait_until

SECRET = "a secret of the Space"
AWAY = "The board of this runner is not shown: the Space answers with status 503. Look at its log."


def make_job(job_id: str = "c0ffee", **overrides) -> Job:
    fields: dict[str, Any] = {
        "id": job_id,
        "request": JobRequest(
            model="org/Model",
            targets_bpw=(4.5,),
            requester="somebody",
            options=RecipeOptions.model_validate({"menu": "4g64,8g64"}),
            notify_url="https://hooks.slack.com/services/T0/B0/canary",
        ),
        "recipe_version": 1,
        "submitted_at": datetime(2026, 1, 31, tzinfo=UTC),
        "state": JobState.WAITING,
    }
    return Job(**fields | overrides)


def make_runner(**overrides) -> RunnerStatus:
    fields: dict[str, Any] = {
        "id": "mac-studio",
        "version": "1",
        "memory_bytes": 64 * 10**9,
        "num_slots": 1,
        "num_running": 0,
        "silent_secs": 1.5,
        "is_alive": True,
        "chip": "Apple M2 Ultra",
    }
    return RunnerStatus(**fields | overrides)


@pytest.mark.harden("private jobs")
def test_the_options_of_the_operators_own_jobs_stay_on_their_machine():
    options = RecipeOptions(calibration="/home/me/customers.jsonl", evaluation="me/private-texts")
    asked = JobRequest(
        model="org/M", targets_bpw=(4.5,), requester=local_name("me"), options=options
    )
    posted = json.dumps(board_snapshot([make_job(request=asked)], []))
    assert "org/M" in posted
    assert "customers" not in posted
    assert "private-texts" not in posted


@pytest.mark.harden("inbox")
@pytest.mark.parametrize("is_packed", [False, True])
def test_an_answer_of_a_space_that_is_too_long_is_not_read_to_its_end(caplog, is_packed):
    answer = json.dumps({"look_at": [], "act": "pause"}).encode() + b" " * 50_000_000
    body = zlib.compress(answer, wbits=31) if is_packed else answer
    cut_off = threading.Event()
    done: list[object] = []

    class Talkative(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip" if is_packed else "identity")
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:
                cut_off.set()

        def log_message(self, *args) -> None:
            """Does not log requests."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Talkative)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        with LiveBoard(url, SECRET, "mac", dict, on_requests=done.append):
            wait_until(lambda: done or "requests cannot be read" in caplog.text)
            assert not done
            if not is_packed:
                wait_until(cut_off.is_set)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Space:
    """A Space that keeps the posted boards, unless it is `broken`."""

    boards: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    broken: int | None = None
    answers: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def __post_init__(self) -> None:
        self.answers.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, post: Post) -> tuple[int, str]:
        content = json.loads(post.body)
        self.paths.append(post.path)
        self.authorizations.append(post.headers.get("Authorization"))
        self.answers.wait()
        if self.broken is None:
            self.boards.append(content)
        return self.broken or 204, f"{self.url}/elsewhere"


@contextmanager
def serving(space: Space) -> Iterator[Space]:
    with taking_posts(space.take, port=space.port) as space.port:
        try:
            yield space
        finally:
            space.answers.set()


@pytest.fixture
def space() -> Iterator[Space]:
    with serving(Space()) as space:
        yield space


def showing(space: Space, snapshot, **options) -> LiveBoard:
    return LiveBoard(space.url, SECRET, "mac-studio", snapshot, **{"interval_secs": 0.01} | options)


def test_every_change_is_posted_with_the_secret_and_nothing_twice(space):
    content = {"jobs": [1]}
    num_asked = 0

    def snapshot():
        nonlocal num_asked
        num_asked += 1
        return dict(content)

    with showing(space, snapshot):
        wait_until(lambda: num_asked > 5)
        content["jobs"] = [2]
        wait_until(lambda: len(space.boards) == 2)
        before = num_asked
        wait_until(lambda: num_asked > before + 5)
    assert space.boards == [
        {"runner_id": "mac-studio", "jobs": [1]},
        {"runner_id": "mac-studio", "jobs": [2]},
    ]
    assert set(space.paths) == {"/runner/board"}
    assert set(space.authorizations) == {f"Bearer {SECRET}"}


def test_a_board_that_does_not_change_is_posted_again_in_time(space):
    with showing(space, lambda: {"jobs": []}, repeat_secs=0.1):
        wait_until(lambda: len(space.boards) >= 3)


def test_a_space_that_was_away_has_the_board_again_and_each_is_logged_once(space, caplog):
    caplog.set_level(logging.INFO, logger="dynquant.runner.live_board")
    space.broken = 503
    with showing(space, lambda: {"jobs": []}):
        wait_until(lambda: len(space.paths) >= 3)
        space.broken = None
        wait_until(lambda: len(space.boards) == 1)
    assert [record.getMessage() for record in caplog.records] == [
        AWAY,
        "The Space shows the board of this runner.",
    ]


def test_an_outage_that_changes_its_mind_all_the_time_does_not_fill_the_log(space, caplog):
    caplog.set_level(logging.INFO, logger="dynquant.runner.live_board")
    statuses = [502, 503, 502, 503]

    def snapshot():
        space.broken = statuses.pop() if statuses else None
        return {"jobs": []}

    with showing(space, snapshot):
        wait_until(lambda: space.boards)
    found = [record.getMessage() for record in caplog.records]
    assert [message.count("50") for message in found] == [1, 1, 0]


class Pauses(threading.Event):
    """Records the requested waiting times, and waits less."""

    def __init__(self) -> None:
        super().__init__()
        self.secs: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.secs.append(timeout)
        return super().wait(0.001)


def test_tries_come_further_apart_while_the_space_is_away(space):
    space.broken = 503
    board = showing(space, lambda: {"jobs": []}, interval_secs=1.0)
    board._stopping = pauses = Pauses()
    with board:
        wait_until(lambda: len(pauses.secs) >= 6)
    assert pauses.secs[:6] == [2, 4, 8, 16, 32, 60]


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "DYNQUANT_SPACE_SECRET"), (404, "DYNQUANT_SPACE_URL"), (302, "status 302")],
)
def test_what_is_wrong_at_the_space_is_said_with_what_to_do(space, caplog, status, words):
    space.broken = status
    with showing(space, lambda: {"jobs": []}):
        wait_until(lambda: caplog.records)
    assert words in caplog.records[0].getMessage()
    assert set(space.paths) == {"/runner/board"}, "a redirect was followed"
    assert SECRET not in caplog.text


def test_a_space_that_is_not_there_is_no_error(caplog):
    with serving(Space()) as space:
        pass
    with showing(space, lambda: {"jobs": []}):
        wait_until(lambda: caplog.records)
    assert "the Space does not answer (ConnectError)" in caplog.text


@pytest.mark.parametrize("error", [RetryLaterError("away"), TypeError("a bug")])
def test_a_board_that_cannot_be_read_is_logged_once_and_tried_again(space, caplog, error):
    failures = [error] * 3

    def snapshot():
        if failures:
            raise failures.pop()
        return {"jobs": []}

    with showing(space, snapshot):
        wait_until(lambda: len(space.boards) == 1)
    (record,) = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert record.getMessage() == (
        f"The board of this runner is not shown: it cannot be read ({type(error).__name__})."
    )


def test_it_stops_though_the_space_is_silent_for_ever(space, monkeypatch):
    monkeypatch.setattr(live_board, "_TIMEOUT_SECS", None)
    space.answers.clear()
    with showing(space, lambda: {"jobs": []}):
        wait_until(lambda: space.paths)
    assert not space.answers.is_set()


def test_it_stops_though_the_next_post_is_far_away(space, monkeypatch):
    monkeypatch.setattr(live_board, "_STOP_SECS", None)
    with showing(space, lambda: {"jobs": []}, interval_secs=1e6):
        wait_until(lambda: space.boards)


def test_a_password_in_netrc_does_not_take_the_place_of_the_secret(space, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with showing(space, lambda: {"jobs": []}):
        wait_until(lambda: space.boards)
    assert space.authorizations == [f"Bearer {SECRET}"]


def test_a_snapshot_has_what_jobs_and_runners_are_and_no_address_to_notify():
    job = make_job(
        state=JobState.RUNNING,
        progress=StepProgress(step="measure", fraction=0.5, layer="layers.3"),
        eta_secs=12.0,
        runner="mac-studio",
    )
    board = json.loads(json.dumps(board_snapshot([job], [make_runner(silent_secs=119.0)])))
    (shown,) = board["jobs"]
    assert shown["id"] == "c0ffee"
    assert shown["state"] == "running"
    assert shown["progress"]["fraction"] == 0.5
    assert shown["eta_secs"] == 12.0
    assert shown["position"] is None
    assert shown["submitted_at"] == "2026-01-31T00:00:00+00:00"
    assert shown["request"]["options"] == {"menu": "4g64,8g64"}
    assert "notify_url" not in shown["request"]
    assert "canary" not in json.dumps(board)
    assert board["num_jobs_left_out"] == 0
    assert board["runners"] == [
        {
            "id": "mac-studio",
            "version": "1",
            "memory_bytes": 64 * 10**9,
            "num_slots": 1,
            "num_running": 1,
            "silent_secs": 60,
            "is_alive": True,
            "chip": "Apple M2 Ultra",
        }
    ]


@pytest.mark.harden("web")
def test_nothing_private_is_posted_not_even_how_many_there_are():
    def asked(**private: Any) -> JobRequest:
        return JobRequest(
            model="org/Canary", targets_bpw=(4.5,), requester="canary", destination="me", **private
        )

    hidden = [
        make_job("1", request=asked(private=True), position=1, sentence="canary"),
        make_job("2", request=asked(source_is_private=True), state=JobState.RUNNING, runner="mac"),
        make_job("3", request=asked(source_is_private=True, public=True), state=JobState.FAILED),
        *(
            make_job(f"over {i}", request=asked(private=True), state=JobState.PUBLISHED)
            for i in range(600)
        ),
    ]
    runner = make_runner(id="mac", num_running=1)
    with_them = board_snapshot([*hidden, make_job("seen", position=2)], [runner])
    without = board_snapshot([make_job("seen", position=1)], [make_runner(id="mac")])
    assert with_them == without
    assert "canary" not in json.dumps(with_them).lower().replace("b0/canary", "")


def test_a_quant_of_a_private_model_is_shown_once_it_was_published_for_everybody():
    request = JobRequest(
        model="me/Mine", targets_bpw=(4.5,), requester="me", public=True, source_is_private=True
    )
    job = make_job(request=request, state=JobState.PUBLISHED)
    assert [each["id"] for each in board_snapshot([job], [])["jobs"]] == [job.id]


def test_two_snapshots_of_a_quiet_board_are_alike():
    first, second = (board_snapshot([make_job()], [make_runner(silent_secs=s)]) for s in (0.2, 1.9))
    assert first == second


def test_of_too_many_jobs_the_latest_and_those_that_are_not_over_are_shown():
    over = [make_job(f"over {i}", state=JobState.PUBLISHED) for i in range(600)]
    board = board_snapshot([*over, make_job("waits")], [])
    assert board["num_jobs_left_out"] == 101
    assert [job["id"] for job in board["jobs"]] == ["waits", *(f"over {i}" for i in range(499))]


def test_a_snapshot_stays_small_whatever_the_jobs_hold():
    repos = tuple(PublishedRepo(repo_id="x" * 2_000, commit_sha="y" * 2_000) for _ in range(500))
    jobs = [make_job(f"fat {i}", results=repos) for i in range(4)] + [make_job("slim")]
    board = board_snapshot(jobs, [])
    assert len(json.dumps(board)) < 2_100_000
    assert "slim" in [job["id"] for job in board["jobs"]]


def test_long_texts_are_cut():
    (shown,) = board_snapshot([make_job(sentence="s" * 9_999)], [])["jobs"]
    assert shown["sentence"] == "s" * 499 + "…"
