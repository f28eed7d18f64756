from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dynquant.errors import ModelNotFoundError, RequestError, RetryLaterError
from dynquant.jobs.inbox import InboxEntry, entry_name
from dynquant.jobs.job import (
    TERMINAL,
    Job,
    JobState,
    Outcome,
    PublishedRepo,
    begun,
    cancelled,
    ended,
    retried,
)
from dynquant.jobs.request import JobRequest, Priority, job_id
from dynquant.quant.recipe import RECIPE_VERSION
from dynquant.runner.inbox_policy import InboxPolicy
from dynquant.runner.inbox_worker import _MAX_OPEN, Announcer, FoundSource, InboxWorker

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
RESULT = PublishedRepo(repo_id="you/M-MLX-4.5bpw", commit_sha="c0ffee")


@dataclass
class FakeInbox:
    entries: dict[str, InboxEntry] = field(default_factory=dict)
    results: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def put(self, request: JobRequest | None, *, at: datetime = NOW, sentence: str = "") -> str:
        name = entry_name(sent_at=at, nonce=f"{len(self.entries):016x}")
        self.entries[name] = InboxEntry(name=name, request=request, sentence=sentence)
        return name

    def send(self, request):
        return self.put(request)

    def pending(self, *, skip=()):
        done = {*self.results, *skip}
        return [entry for name, entry in sorted(self.entries.items()) if name not in done]

    def gone(self, names):
        return {name for name in names if name in self.results or name not in self.entries}

    def finish(self, name, result):
        self.results.setdefault(name, result)

    def result(self, name):
        return self.results.get(name)


class FakeBoard:
    """Jobs in memory; new jobs are refused while it `is_full`."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.is_full = False
        self.num_lists = 0

    def submit(self, request, *, revision_sha, source_is_private, recipe_version):
        if self.is_full:
            raise RetryLaterError("Over the limit.")
        request = replace(request, revision=revision_sha, source_is_private=source_is_private)
        identity = job_id(request, revision_sha=revision_sha, recipe_version=recipe_version)
        job = Job(id=identity, request=request, recipe_version=recipe_version, submitted_at=NOW)
        return self.jobs.setdefault(identity, job)

    def get(self, identity):
        if identity not in self.jobs:
            raise RequestError("There is no such job.")
        return self.jobs[identity]

    def cancel(self, identity):
        self.jobs[identity] = cancelled(self.jobs[identity], at=NOW)
        return self.jobs[identity]

    def retry(self, identity, *, request=None):
        self.jobs[identity] = retried(self.jobs[identity], at=NOW, request=request)
        return self.jobs[identity]

    def list(self, *, states=(), requester=None, limit=100):
        self.num_lists += 1
        return tuple(job for job in self.jobs.values() if job.state in (states or TERMINAL))

    def mark(self, states):
        found = [job.attempt for job in self.jobs.values() if job.state in states]
        return len(found), sum(found)

    def end(self, identity: str, state: JobState, *, at: datetime = NOW, runner: str = "mac"):
        outcome = Outcome(
            state=state,
            sentence="So it is.",
            reason_code="why",
            results=(RESULT,) if state == JobState.PUBLISHED else (),
        )
        job = begun(self.jobs[identity], runner=runner, at=at)
        self.jobs[identity] = ended(job, outcome, at=at)


def make_request(**overrides: Any) -> JobRequest:
    fields = {"model": "org/m", "targets_bpw": (4.5,), "destination": "you", "requester": "ann"}
    return JobRequest(**fields | overrides)


@pytest.fixture
def board() -> FakeBoard:
    return FakeBoard()


@pytest.fixture
def inbox() -> FakeInbox:
    return FakeInbox()


@pytest.fixture
def looked_up() -> list[str]:
    """Models that were looked up on the Hub."""
    return []


@pytest.fixture
def clock() -> list[float]:
    """A clock that a test sets."""
    return [0.0]


@pytest.fixture
def make_worker(board, inbox, tmp_path, looked_up, clock) -> Callable[[], InboxWorker]:
    """A new inbox worker, as after each start of a runner."""

    def look_up(model, revision, as_operator):
        looked_up.append(model)
        if model == "org/none" or (model.startswith("you/secret") and not as_operator):
            raise ModelNotFoundError("There is no such model.")
        return FoundSource(model.replace("org/m", "org/M"), "5ha", is_private=model == "org/mine")

    policy = InboxPolicy(default_destination=lambda: "you", private_sources=("you/secret-for-all",))
    return lambda: InboxWorker(
        inbox,
        board,
        policy=policy,
        memory=tmp_path / "mail.txt",
        look_up=look_up,
        clock=lambda: clock[0],
    )


@pytest.fixture
def worker(make_worker) -> InboxWorker:
    return make_worker()


def test_a_request_becomes_one_job_however_often_it_is_looked_at(worker, inbox, board):
    inbox.put(make_request())
    for _ in range(3):
        worker.do_round()
    (job,) = board.jobs.values()
    assert (job.request.model, job.request.revision) == ("org/M", "5ha")
    assert job.request.requester == "ann"
    assert inbox.results == {}


@pytest.mark.harden("web")
@pytest.mark.parametrize(("model", "is_private"), [("org/mine", True), ("org/m", False)])
@pytest.mark.parametrize("claim", [True, False])
def test_whether_a_model_is_private_says_the_hub_and_not_the_mail(
    worker, inbox, board, model, is_private, claim
):
    inbox.put(make_request(model=model, source_is_private=claim))
    worker.do_round()
    (job,) = board.jobs.values()
    assert job.request.source_is_private == is_private


def test_an_attempt_that_comes_by_mail_is_of_who_sent_it(worker, inbox, board):
    inbox.put(make_request())
    worker.do_round()
    (identity,) = board.jobs
    board.end(identity, JobState.FAILED)
    inbox.put(make_request(requester="bob"), at=NOW + timedelta(hours=1))
    worker.do_round()
    assert (board.jobs[identity].attempt, board.jobs[identity].request.requester) == (2, "bob")


def test_the_result_of_a_job_goes_back_under_the_name_of_every_request_for_it(worker, inbox, board):
    names = [inbox.put(make_request()), inbox.put(make_request(requester="bob"))]
    worker.do_round()
    (identity,) = board.jobs
    board.end(identity, JobState.PUBLISHED)
    worker.do_round()
    assert list(inbox.results) == names
    for result in inbox.results.values():
        assert result["state"] == "published"
        assert result["job_id"] == identity
        assert result["results"] == [{"repo_id": RESULT.repo_id, "commit_sha": RESULT.commit_sha}]


def test_what_is_no_request_is_answered_with_its_reason_and_the_rest_goes_on(worker, inbox, board):
    bad = inbox.put(None, sentence="It is no JSON.")
    unknown = inbox.put(make_request(model="org/none"))
    inbox.put(make_request())
    worker.do_round()
    assert inbox.results[bad]["sentence"] == "It is no JSON."
    assert inbox.results[unknown]["reason_code"] == "model_not_found"
    assert len(board.jobs) == 1


def test_what_cannot_be_taken_now_is_taken_later(worker, inbox, board, clock):
    inbox.put(make_request())
    board.is_full = True
    worker.do_round()
    assert (board.jobs, inbox.results) == ({}, {})
    board.is_full = False
    clock[0] = 10.0
    worker.do_round()
    assert len(board.jobs) == 1


def test_who_waits_for_a_day_costs_the_hub_little_and_the_log_a_line(
    worker, inbox, board, clock, looked_up, caplog
):
    inbox.put(make_request())
    board.is_full = True
    for clock[0] in range(0, 86_400, 5):
        worker.do_round()
    assert len(looked_up) < 160  # every ten minutes, and some more at first
    assert caplog.text.count("waits: Over the limit.") == 1
    inbox.put(make_request(targets_bpw=(6.0,), requester="bob"))
    board.is_full = False
    worker.do_round()
    assert [job.request.requester for job in board.jobs.values()] == ["bob"]


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize("has_begun", [False, True])
def test_a_request_that_is_cancelled_cancels_the_job_that_came_of_it(
    make_worker, inbox, board, has_begun, is_restarted
):
    worker = make_worker()
    name = inbox.put(make_request())
    worker.do_round()
    (identity,) = board.jobs
    if has_begun:
        board.jobs[identity] = begun(board.jobs[identity], runner="mac", at=NOW)
    inbox.finish(name, {"state": "cancelled", "sentence": "Cancelled by ann."})
    (make_worker() if is_restarted else worker).do_round()
    assert board.jobs[identity].state is JobState.CANCELLED
    assert inbox.results[name]["sentence"] == "Cancelled by ann."
    inbox.put(make_request(), at=NOW + timedelta(minutes=1))
    worker.do_round()
    assert board.jobs[identity].state is JobState.WAITING


@pytest.mark.harden("inbox")
def test_what_a_visitor_may_not_ask_for_is_answered_and_never_queued(worker, inbox, board):
    forged = [
        inbox.put(make_request(**asked))
        for asked in (
            {"destination": "another-org"},
            {"public": True},
            {"model": "you/secret"},
            {"requester": "local:operator"},
            {"options": {"calibration_tokens": 10**8}},
        )
    ]
    inbox.put(make_request(model="you/secret-for-all", priority=Priority.WATCHER))
    worker.do_round()
    assert [inbox.results[name]["state"] for name in forged] == ["refused"] * len(forged)
    (job,) = board.jobs.values()
    assert (job.request.model, job.request.priority) == ("you/secret-for-all", Priority.PERSON)


@pytest.mark.harden("inbox")
@pytest.mark.parametrize("requester", ["local:operator", "the watcher"])
def test_no_mail_cancels_or_retries_a_job_of_the_operator(worker, inbox, board, requester):
    ours = make_request(model="org/M", requester=requester)
    identity = board.submit(
        ours, revision_sha="5ha", source_is_private=False, recipe_version=RECIPE_VERSION
    ).id
    name = inbox.put(make_request(model="org/M"))
    worker.do_round()
    assert [*board.jobs] == [identity]  # the same request is the same job
    inbox.finish(name, {"state": "cancelled"})
    worker.do_round()
    assert board.jobs[identity].state is JobState.WAITING
    board.end(identity, JobState.FAILED)
    inbox.put(make_request(model="org/M"), at=NOW + timedelta(minutes=5))
    worker.do_round()
    assert board.jobs[identity].state is JobState.FAILED


@pytest.mark.harden("inbox")
def test_a_flood_of_mail_stays_in_the_inbox(worker, inbox, board):
    for number in range(_MAX_OPEN + 50):
        inbox.put(make_request(model=f"org/x{number}", requester=f"made-up-{number}"))
    for _ in range(3):
        worker.do_round()
    assert len(board.jobs) == _MAX_OPEN
    board.end(next(iter(board.jobs)), JobState.PUBLISHED)
    for _ in range(2):
        worker.do_round()
    assert len(board.jobs) == _MAX_OPEN + 1


@pytest.mark.parametrize("result", [{"state": "published"}, {}])
def test_a_request_that_another_runner_answered_leaves_the_job_alone(worker, inbox, board, result):
    name = inbox.put(make_request())
    worker.do_round()
    inbox.finish(name, result)
    worker.do_round()
    assert [job.state for job in board.jobs.values()] == [JobState.WAITING]
    assert inbox.results == {name: result}


def test_a_job_that_somebody_else_still_wants_is_not_cancelled(worker, inbox, board):
    first = inbox.put(make_request())
    inbox.put(make_request(requester="bob"))
    worker.do_round()
    inbox.finish(first, {"state": "cancelled"})
    worker.do_round()
    assert [job.state for job in board.jobs.values()] == [JobState.WAITING]


def test_a_job_that_was_set_aside_is_answered_and_keeps_nobody_waiting(worker, inbox, board):
    lost = inbox.put(make_request())
    other = inbox.put(make_request(targets_bpw=(6.0,)))
    worker.do_round()
    identity, kept = board.jobs
    del board.jobs[identity]
    board.end(kept, JobState.PUBLISHED)
    worker.do_round()
    assert inbox.results[lost]["state"] == "failed"
    assert "Ask for the model again" in inbox.results[lost]["sentence"]
    assert inbox.results[other]["state"] == "published"


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.REFUSED])
def test_asking_again_for_what_had_failed_is_another_attempt(worker, inbox, board, state):
    first = inbox.put(make_request())
    worker.do_round()
    (identity,) = board.jobs
    board.end(identity, state, at=NOW + timedelta(minutes=5))
    worker.do_round()
    assert inbox.results[first]["state"] == state
    inbox.put(make_request(), at=NOW + timedelta(minutes=10))
    worker.do_round()
    assert board.jobs[identity].state == JobState.WAITING
    assert board.jobs[identity].attempt == 2


def announcer(board, tmp_path, told: list[Job]) -> Announcer:
    return Announcer(board, runner_id="mac", memory=tmp_path / "told.txt", tell=told.append)


def submit(board, **overrides) -> str:
    job = board.submit(
        make_request(**overrides), revision_sha="5ha", source_is_private=False, recipe_version=1
    )
    return job.id


def test_every_job_that_ends_here_is_told_once_also_after_a_restart(board, tmp_path):
    told: list[Job] = []
    first = announcer(board, tmp_path, told)
    first.do_round()
    one, two = submit(board), submit(board, targets_bpw=(6.0,))
    board.end(one, JobState.PUBLISHED)
    first.do_round()
    first.do_round()
    assert [job.id for job in told] == [one]
    board.end(two, JobState.FAILED)
    announcer(board, tmp_path, told).do_round()
    assert [job.id for job in told] == [one, two]
    announcer(board, tmp_path, told).do_round()
    assert len(told) == 2


def test_what_had_ended_before_the_first_start_is_not_told(board, tmp_path):
    told: list[Job] = []
    board.end(submit(board), JobState.PUBLISHED)
    announcer(board, tmp_path, told).do_round()
    assert told == []


def test_another_attempt_is_told_again_and_other_runners_tell_of_theirs(board, tmp_path):
    told: list[Job] = []
    mine = announcer(board, tmp_path, told)
    mine.do_round()
    identity = submit(board)
    board.end(identity, JobState.FAILED)
    mine.do_round()
    board.retry(identity)
    board.end(identity, JobState.PUBLISHED)
    mine.do_round()
    assert [job.attempt for job in told] == [1, 2]
    board.end(submit(board, targets_bpw=(6.0,)), JobState.PUBLISHED, runner="other")
    mine.do_round()
    assert len(told) == 2


def test_where_nothing_ends_the_ended_jobs_are_not_read_again(board, tmp_path):
    told: list[Job] = []
    mine = announcer(board, tmp_path, told)
    identity = submit(board)
    for _ in range(10):
        mine.do_round()
    assert board.num_lists == 1
    board.end(identity, JobState.PUBLISHED)
    for _ in range(10):
        mine.do_round()
    assert (len(told), board.num_lists) == (1, 2)


def test_a_cancelled_job_is_not_told(board, tmp_path):
    told: list[Job] = []
    mine = announcer(board, tmp_path, told)
    mine.do_round()
    identity = submit(board)
    board.jobs[identity] = replace(
        cancelled(begun(board.jobs[identity], runner="mac", at=NOW), at=NOW)
    )
    mine.do_round()
    assert told == []
