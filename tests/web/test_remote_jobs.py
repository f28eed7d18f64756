"""A Space without a database: requests leave by the inbox, boards come back by posts."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from dynquant.errors import HubUnavailableError, RequestError
from dynquant.jobs.inbox import InboxEntry
from dynquant.jobs.job import Job, JobState, PublishedRepo, StepProgress
from dynquant.jobs.request import JobRequest
from dynquant.runner.inbox_policy import InboxPolicy
from dynquant.runner.inbox_worker import FoundSource, InboxWorker
from dynquant.runner.live_board import board_snapshot
from dynquant.web.remote_jobs import RemoteJobs
from dynquant.web.snapshots import Snapshots
from tests.fakes import FakeRepos
from tests.runner.test_inbox_worker import FakeBoard
from tests.runner.test_live_board import make_job, make_runner

RESULT = PublishedRepo(repo_id="quants/Model-MLX-4.5bpw", commit_sha="c0ffee")


@dataclass
class FakeInbox:
    """A `jobs.inbox.Inbox` in memory."""

    requests: dict[str, JobRequest] = field(default_factory=dict)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    down: bool = False

    def send(self, request: JobRequest) -> str:
        name = f"2026-07-30/10153012345{len(self.requests) + len(self.results)}-0123456789abcdef"
        self.requests[name] = request
        return name

    def pending(self, *, skip: Collection[str] = ()) -> list[InboxEntry]:
        if self.down:
            raise HubUnavailableError("The Hub does not answer.")
        broken = InboxEntry(name="2026-07-30/000000000000-0000000000000000", sentence="No request.")
        found = [
            InboxEntry(name=name, request=request)
            for name, request in self.requests.items()
            if name not in skip
        ]
        return [broken, *found]

    def gone(self, names: Collection[str]) -> set[str]:
        return set(names) - self.requests.keys()

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        self.requests.pop(name, None)
        self.results.setdefault(name, dict(result))

    def result(self, name: str) -> dict[str, Any] | None:
        return self.results.get(name)


class Clock:
    def __init__(self) -> None:
        self.secs = 1_000.0

    def __call__(self) -> float:
        return self.secs


class Space:
    def __init__(self, inbox: FakeInbox | None = None) -> None:
        self.clock = Clock()
        self.inbox = inbox or FakeInbox()
        self.snapshots = Snapshots(clock=self.clock)
        self.repos = FakeRepos()
        self.jobs = RemoteJobs(
            self.inbox,
            self.snapshots,
            self.repos,
            clock=self.clock,
            in_background=lambda action: action(),
        )

    def post(self, *jobs: Job, runner_id: str = "mac-studio", **overrides: Any) -> None:
        runner = make_runner(id=runner_id, **overrides)
        board = {"runner_id": runner_id, **board_snapshot(jobs, [runner])}
        self.snapshots.take(json.dumps(board).encode())


def make_request(**overrides) -> JobRequest:
    fields: dict[str, Any] = {
        "model": "org/Model",
        "revision": "5ha",
        "targets_bpw": (4.5,),
        "destination": "quants",
        "requester": "ann",
    }
    return JobRequest(**fields | overrides)


def running(job: Job, step: str = "measure", fraction: float = 0.5) -> Job:
    return replace(
        job,
        state=JobState.RUNNING,
        sentence="",
        runner="mac-studio",
        started_at=datetime.now(UTC),
        progress=StepProgress(step=step, fraction=fraction),
    )


def over(job: Job, state: JobState = JobState.FAILED) -> Job:
    results = (RESULT,) if state is JobState.PUBLISHED else ()
    return replace(
        running(job), state=state, ended_at=datetime.now(UTC), sentence="So it is.", results=results
    )


def test_a_request_is_a_job_at_once_and_then_what_a_runner_says_of_it():
    space = Space()
    job = space.jobs.submit_anew(make_request())
    assert (job.state, space.jobs.get(job.id)) == (JobState.WAITING, job)
    space.post(running(job))
    assert space.jobs.get(job.id).progress == StepProgress(step="measure", fraction=0.5)
    space.post(over(job, JobState.PUBLISHED))
    assert space.jobs.get(job.id).state is JobState.PUBLISHED


def test_an_address_that_no_runner_would_tell_is_refused_before_it_is_sent():
    space = Space()
    with pytest.raises(RequestError, match="begin with https://"):
        space.jobs.submit_anew(make_request(notify_url="http://example.com/hook"))
    assert not space.jobs.list(limit=10)


def test_the_same_request_is_sent_once():
    space = Space()
    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda _: space.jobs.submit_anew(make_request()), range(8)))
    assert len({job.id for job in jobs}) == len(space.inbox.requests) == 1
    space.post(over(jobs[0], JobState.PUBLISHED))
    space.jobs.submit_anew(make_request())
    assert len(space.inbox.requests) == 1


def test_what_failed_and_is_asked_for_again_waits_until_a_runner_has_seen_it():
    space = Space()
    job = space.jobs.submit_anew(make_request())
    space.post(over(job))
    again = space.jobs.submit_anew(make_request())
    assert (again.id, space.jobs.get(job.id).state) == (job.id, JobState.WAITING)
    assert len(space.inbox.requests) == 2
    space.post(running(job))
    assert space.jobs.get(job.id).state is JobState.RUNNING


def test_what_was_published_and_deleted_is_asked_of_the_runners_again():
    space = Space()
    job = space.jobs.submit_anew(make_request())
    space.post(over(job, JobState.PUBLISHED))
    assert space.jobs.submit_anew(make_request()).state is JobState.PUBLISHED
    space.repos.deleted.add(RESULT.repo_id)
    with ThreadPoolExecutor(8) as pool:
        again = list(
            pool.map(lambda _: space.jobs.submit_anew(make_request(requester="bob")), range(8))
        )
    assert {(each.id, each.state) for each in again} == {(job.id, JobState.WAITING)}
    assert [request.requester for request in space.inbox.requests.values()] == ["ann", "bob"]
    space.post(running(replace(job, attempt=2)))
    assert space.jobs.get(job.id).attempt == 2


def test_a_hub_that_does_not_say_whether_it_was_deleted_leaves_what_is_known():
    space = Space()
    job = space.jobs.submit_anew(make_request())
    space.post(over(job, JobState.PUBLISHED))
    space.repos.is_down = True
    assert space.jobs.submit_anew(make_request()).state is JobState.PUBLISHED
    assert len(space.inbox.requests) == 1


def test_a_runner_that_finds_it_where_the_space_did_not_ends_the_wait():
    space = Space()
    job = space.jobs.submit_anew(make_request())
    space.post(over(job, JobState.PUBLISHED))
    space.repos.deleted.add(RESULT.repo_id)
    assert space.jobs.submit_anew(make_request()).state is JobState.WAITING
    name = list(space.inbox.requests)[-1]
    space.inbox.finish(name, {"state": "published", "results": [asdict(RESULT)]})
    space.clock.secs += 30
    assert space.jobs.list(limit=1)
    assert space.jobs.get(job.id).state is JobState.PUBLISHED


def test_after_a_restart_what_waits_comes_back_from_the_inbox():
    before = Space()
    job = before.jobs.submit_anew(make_request())
    after = Space(before.inbox)
    assert after.jobs.get(job.id).request == make_request()
    assert [each.id for each in after.jobs.list(limit=10)] == [job.id]


def test_a_request_that_no_runner_takes_ends_as_its_result_says():
    space = Space()
    job = space.jobs.submit_anew(make_request())
    refusal = {"state": "refused", "reason_code": "gguf", "sentence": "It holds GGUF files."}
    space.inbox.finish(next(iter(space.inbox.requests)), refusal)
    space.clock.secs += 30
    found = space.jobs.get(job.id)
    assert (found.state, found.reason_code) == (JobState.REFUSED, "gguf")
    assert found.sentence == "It holds GGUF files."


@pytest.mark.parametrize("result", [{}, {"state": "odd"}, {"state": "published", "results": [1]}])
def test_a_result_that_nobody_can_read_is_a_failure(result):
    space = Space()
    job = space.jobs.submit_anew(make_request())
    space.inbox.finish(next(iter(space.inbox.requests)), result)
    space.clock.secs += 30
    assert space.jobs.get(job.id).state is JobState.FAILED


def test_a_request_is_cancelled_while_no_runner_has_it():
    space = Space()
    job = space.jobs.submit_anew(make_request())
    assert space.jobs.cancel(job.id).state is JobState.CANCELLED
    assert space.inbox.requests == {}
    with pytest.raises(RequestError, match="is over"):
        space.jobs.cancel(job.id)
    assert space.jobs.retry(job.id).state is JobState.WAITING


def test_a_job_that_a_runner_has_is_cancelled_by_its_operator():
    space = Space()
    job = space.jobs.submit_anew(make_request())
    space.post(running(job))
    with pytest.raises(RequestError, match=f"'dynquant jobs cancel {job.id}'"):
        space.jobs.cancel(job.id)


def test_what_is_cancelled_before_a_runner_has_posted_is_stopped_by_it(tmp_path):
    before = Space()
    board: Any = FakeBoard()
    worker = InboxWorker(
        before.inbox,
        board,
        policy=InboxPolicy(default_destination=lambda: "quants"),
        memory=tmp_path / "mail.txt",
        look_up=lambda model, *_: FoundSource(model, "5ha", is_private=False),
    )
    asked = before.jobs.submit_anew(make_request())
    worker.do_round()
    board.jobs[asked.id] = running(board.jobs[asked.id])
    after = Space(before.inbox)
    assert after.jobs.list(limit=1)
    assert after.jobs.cancel(asked.id).state is JobState.CANCELLED
    worker.do_round()
    assert board.get(asked.id).state is JobState.CANCELLED


def test_a_inbox_that_is_down_leaves_what_is_known():
    space = Space()
    job = space.jobs.submit_anew(make_request())
    space.inbox.down = True
    space.clock.secs += 30
    assert space.jobs.get(job.id) == job
    with pytest.raises(RequestError, match="has just started"):
        space.jobs.get("0" * 20)


def test_the_log_tells_what_was_seen_to_happen():
    space = Space()
    job = make_job()
    space.post(job)
    for step in ("measure", "measure", "encode"):
        space.post(running(job, step))
    space.post(over(job))
    sentences = [event.sentence for event in space.jobs.log(job.id)]
    assert sentences == ["It is waiting.", "It is running.", "Step encode begins.", "So it is."]


def test_a_runner_of_before_posts_no_chip_and_is_shown_all_the_same():
    space = Space()
    board = {"runner_id": "mac-studio", **board_snapshot((), [make_runner()])}
    space.snapshots.take(json.dumps(board).encode())
    assert space.jobs.runners()[0].chip == "Apple M2 Ultra"
    del board["runners"][0]["chip"]
    space.snapshots.take(json.dumps(board).encode())
    assert space.jobs.runners()[0].chip == ""


def test_a_runner_that_posts_no_more_is_away():
    space = Space()
    space.post(silent_secs=0.0)
    space.post(runner_id="mac-mini", silent_secs=0.0)
    assert [runner.is_alive for runner in space.jobs.runners()] == [True, True]
    space.clock.secs += 200
    space.post(runner_id="mac-mini", silent_secs=0.0)
    mini, studio = space.jobs.runners()
    assert (mini.is_alive, mini.silent_secs) == (True, 0)
    assert (studio.is_alive, studio.silent_secs) == (False, 200)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{" * 100_000,
        b'{"runner_id": "x"}',
        b'{"runner_id": "x", "jobs": [{}], "runners": []}',
        b'{"runner_id": "x", "jobs": [], "runners": [{"id": "x"}]}',
        b'{"runner_id": "x", "jobs": 1, "runners": []}',
        *(
            json.dumps({"runner_id": "x", **board_snapshot((), [make_runner()])})
            .replace('"num_slots": 1', f'"num_slots": {number}')
            .encode()
            for number in ("Infinity", "NaN", "1e400", "1" + 5_000 * "0")
        ),
    ],
)
def test_what_is_no_board_is_refused_whole(content):
    space = Space()
    space.post(make_job())
    with pytest.raises(RequestError, match="not a board of this version"):
        space.snapshots.take(content)
    assert len(space.snapshots.jobs()) == 1
