from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.errors import RequestError
from dynquant.jobs.job import (
    MAX_DEATHS,
    TERMINAL,
    Job,
    JobState,
    Outcome,
    PublishedRepo,
    StepProgress,
    TransitionError,
    begun,
    cancelled,
    ended,
    in_step,
    lost_its_runner,
    made_again,
    progressed,
    put_back,
    retried,
)
from dynquant.jobs.job_text import (
    job_from_text,
    job_to_text,
    outcome_from_text,
    outcome_to_text,
    results_from_text,
    results_to_text,
)
from dynquant.jobs.request import JobRequest, Priority, job_id, request_from_json, request_to_json
from dynquant.quant.formats import DEFAULT_MENU
from dynquant.texts.defaults import DEFAULT_CALIBRATION

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
REPO = PublishedRepo(repo_id="me/Model-MLX-4.5bpw", commit_sha="c0ffee")


def make_request(**overrides: Any) -> JobRequest:
    fields: dict[str, Any] = {
        "model": "org/Model",
        "revision": "5ha",
        "targets_bpw": (3.0, 4.5),
        "requester": "ann",
    }
    return JobRequest(**fields | overrides)


def make_job(**overrides: Any) -> Job:
    fields: dict[str, Any] = {
        "id": "0123456789",
        "request": make_request(),
        "recipe_version": 1,
        "submitted_at": NOON,
    }
    return Job(**fields | overrides)


def make_running(**overrides: Any) -> Job:
    job = begun(make_job(**overrides), runner="mac", at=NOON)
    return progressed(in_step(job, "measure"), StepProgress(step="measure", fraction=0.25))


def identity(request: JobRequest, *, sha: str = "5ha", version: int = 1) -> str:
    return job_id(request, revision_sha=sha, recipe_version=version)


# Ids of jobs.


def test_the_id_depends_on_what_is_made_and_on_nothing_else():
    same = make_request(
        targets_bpw=(4.5, 3, 4.5),
        requester="bob",
        priority=Priority.WATCHER,
        revision="main",
        notify_url="https://example.org",
    )
    assert identity(same) == identity(make_request())


@pytest.mark.parametrize(
    "other",
    [
        identity(make_request(model="org/Other")),
        identity(make_request(targets_bpw=(4.5,))),
        identity(make_request(destination="me")),
        identity(make_request(private=True)),
        identity(make_request(public=True)),
        identity(make_request(options={"encoder": "wls"})),
        identity(make_request(), sha="other"),
        identity(make_request(), version=2),
    ],
)
def test_what_makes_another_result_makes_another_id(other):
    assert other != identity(make_request())


def test_the_id_stays_the_same_between_releases():
    request = make_request(options={"effort": "max", "menu": "4g64,8g64"}, destination="me")
    assert identity(request) == "e7f1edcfab0701cb3b7d"


@pytest.mark.parametrize(
    "options",
    [
        {"menu": "4g64,8g64"},
        {"menu": "8g64,4g64"},
        {"menu": "4g64, 8g64"},
        {"menu": "8g64,4g64,4g64", "seed": 0, "encoder": "gptq", "time_budget_mins": None},
        {"calibration": DEFAULT_CALIBRATION, "menu": "4g64,8g64"},
    ],
)
def test_the_same_wish_in_another_spelling_is_the_same_job(options):
    assert identity(make_request(options=options)) == identity(
        make_request(options={"menu": "4g64,8g64"})
    )


@pytest.mark.parametrize("role", ["calibration_images", "evaluation_images"])
def test_images_are_part_of_a_request_by_their_name(role):
    request = make_request(options={role: "org/photos"})
    assert request.options.images == {role: "org/photos"}
    assert request_from_json(request_to_json(request)) == request
    assert identity(request) != identity(make_request())
    assert make_request(options={role: ""}) == make_request()
    assert make_request().options.images == {}


def test_all_formats_by_name_are_the_same_as_no_list_of_formats():
    menu = ",".join(fmt.name for fmt in DEFAULT_MENU)
    assert make_request(options={"menu": menu}) == make_request()


# States of a job.

TRANSITIONS = {
    "begun": lambda job: begun(job, runner="mac", at=NOON),
    "in_step": lambda job: in_step(job, "encode"),
    "progressed": lambda job: progressed(job, StepProgress(step="encode")),
    "put_back": lambda job: put_back(job, sentence="Later."),
    "lost": lambda job: lost_its_runner(job, at=NOON, memory_bytes=16 * 10**9),
    "published": lambda job: ended(
        job, Outcome(state=JobState.PUBLISHED, results=(REPO,)), at=NOON
    ),
    "refused": lambda job: ended(job, Outcome(state=JobState.REFUSED, sentence="No."), at=NOON),
    "failed": lambda job: ended(job, Outcome(state=JobState.FAILED, sentence="No."), at=NOON),
    "cancelled": lambda job: cancelled(job, at=NOON),
    "retried": lambda job: retried(job, at=NOON),
    "made_again": lambda job: made_again(job, job.request, at=NOON),
}


@given(st.lists(st.sampled_from(sorted(TRANSITIONS)), max_size=30))
def test_only_another_attempt_leaves_a_terminal_state_and_it_keeps_the_history(names):
    job = make_job()
    for name in names:
        try:
            after = TRANSITIONS[name](job)
        except TransitionError:
            continue
        if job.is_over:
            is_published = job.state is JobState.PUBLISHED
            assert name == ("made_again" if is_published else "retried")
            assert after.history[:-1] == job.history
            assert after.history[-1].state is job.state
            assert (after.attempt, after.deaths, after.state) == (
                job.attempt + 1,
                0,
                JobState.WAITING,
            )
        else:
            assert name not in {"retried", "made_again"}
            assert (after.attempt, after.history) == (job.attempt, job.history)
        assert after.is_over == (after.state in TERMINAL) == (after.ended_at is not None)
        assert after.deaths <= MAX_DEATHS
        assert (after.id, after.request) == (job.id, job.request)
        job = after


@pytest.mark.parametrize(
    ("state", "allowed"),
    [
        (JobState.WAITING, {"begun", "cancelled"}),
        (
            JobState.RUNNING,
            set(TRANSITIONS) - {"begun", "retried", "made_again"},
        ),
        (JobState.PUBLISHED, {"made_again"}),
        (JobState.REFUSED, {"retried"}),
        (JobState.FAILED, {"retried"}),
        (JobState.CANCELLED, {"retried"}),
    ],
)
def test_a_state_is_left_only_in_the_ways_that_the_picture_shows(state, allowed):
    possible = set()
    for name, transition in TRANSITIONS.items():
        try:
            transition(make_job(state=state))
        except TransitionError:
            continue
        possible.add(name)
    assert possible == allowed


def test_progress_of_a_step_that_is_over_says_nothing():
    job = in_step(make_running(), "encode")
    assert progressed(job, StepProgress(step="measure", fraction=0.9)) == job
    later = progressed(job, StepProgress(step="encode", fraction=0.1))
    assert later.progress == StepProgress(step="encode", fraction=0.1)


def test_a_job_that_is_put_back_remembers_when_it_began_and_what_it_needs():
    waiting = put_back(make_running(), sentence="It needs more.", needed_memory_bytes=64 * 10**9)
    assert (waiting.state, waiting.needed_memory_bytes) == (JobState.WAITING, 64 * 10**9)
    again = begun(waiting, runner="studio", at=NOON + timedelta(hours=1))
    assert (again.started_at, again.runner, again.sentence) == (NOON, "studio", "")


def test_a_runner_that_dies_before_the_first_step_is_not_the_models_fault():
    job = begun(make_job(), runner="mac", at=NOON)
    assert lost_its_runner(job, at=NOON, memory_bytes=1).deaths == 0


def test_the_third_death_fails_the_job_and_says_what_it_needs():
    job = make_running(deaths=2, needed_memory_bytes=70 * 10**9)
    failed = lost_its_runner(job, at=NOON, memory_bytes=16 * 10**9)
    assert (failed.state, failed.reason_code) == (JobState.FAILED, "killed_runners")
    assert "3 runners died while converting this model: it needs about 70 GB" in failed.sentence


def test_without_an_estimate_the_need_is_more_than_the_last_runner_had():
    failed = lost_its_runner(make_running(deaths=2), at=NOON, memory_bytes=16 * 10**9)
    assert "more than the 16 GB of the last runner" in failed.sentence


def test_a_job_cannot_end_as_something_that_is_no_end():
    with pytest.raises(TransitionError, match="cannot end as waiting"):
        ended(make_running(), Outcome(state=JobState.WAITING), at=NOON)


# Jobs as text.

GOOD = request_to_json(make_request())


def test_a_job_comes_back_from_its_text_as_it_was():
    first = ended(make_running(), Outcome(state=JobState.FAILED, sentence="No."), at=NOON)
    request = make_request(
        options={"menu": "4g64,8g64", "seed": 1, "time_budget_mins": 0.5, "distil": True},
        priority=Priority.WATCHER,
        private=True,
        destination="me",
        notify_url="https://example.org/hook",
    )
    job = dataclasses.replace(
        make_running(), request=request, history=retried(first, at=NOON).history
    )
    done = ended(job, Outcome(state=JobState.PUBLISHED, results=(REPO,)), at=NOON)
    assert job_from_text(job_to_text(done)) == done


def test_its_place_in_the_line_is_not_kept():
    text = job_to_text(make_job(position=3, eta_secs=5.0))
    assert job_from_text(text) == make_job()


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", '{"id": 1}', "[" * 100_000, job_to_text(make_job())[:-20]],
)
def test_what_is_not_a_job_is_refused_with_a_sentence(text):
    with pytest.raises(RequestError, match=r"^This entry of the queue is not a job"):
        job_from_text(text)


@pytest.mark.parametrize(
    "change",
    [
        {"state": "done"},
        {"submitted_at": "yesterday"},
        {"results": [{"repo": "x"}]},
        {"surprise": 1},
        {"deaths": "many"},
        {"progress": {"step": "dance"}},
        {"history": [{"number": 1}]},
        {"request": {}},
        {"request": GOOD | {"options": {"encoder": "gtpq"}}},
        {"request": GOOD | {"options": {"efort": "max"}}},
    ],
)
def test_a_job_of_another_version_is_refused(change):
    text = json.dumps(json.loads(job_to_text(make_job())) | change)
    with pytest.raises(RequestError, match="not a job"):
        job_from_text(text)


def test_outcomes_and_results_come_back_from_their_text():
    outcome = Outcome(state=JobState.PUBLISHED, results=(REPO,))
    assert outcome_from_text(outcome_to_text(outcome)) == outcome
    assert results_from_text(results_to_text((REPO,))) == (REPO,)


# Requests from outside.


def test_a_request_needs_only_a_model_targets_and_a_requester():
    raw = {"model": "org/Model", "targets_bpw": [4], "requester": "ann"}
    assert request_from_json(raw) == JobRequest(
        model="org/Model", targets_bpw=(4.0,), requester="ann"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": ""}, "model"),
        ({"model": 5}, "model"),
        ({"model": "x" * 201}, "at most 200"),
        ({"model": "a\nb"}, "printable"),
        ({"revision": ""}, "revision"),
        ({"requester": None}, "requester"),
        ({"targets_bpw": []}, "targets_bpw"),
        ({"targets_bpw": [True]}, "targets_bpw"),
        ({"targets_bpw": "4.5"}, "targets_bpw"),
        ({"targets_bpw": [float("nan")]}, "targets_bpw"),
        ({"targets_bpw": [0]}, "targets_bpw"),
        ({"targets_bpw": [4.5] * 33}, "targets_bpw"),
        ({"destination": 1}, "destination"),
        ({"priority": "king"}, "'person' or 'watcher'"),
        ({"priority": 0}, "'person' or 'watcher'"),
        ({"private": "no"}, "private"),
        ({"private": True, "public": True}, "private or public"),
        ({"options": []}, "options"),
        ({"options": {"encoder": "gtpq"}}, "no encoder 'gtpq'"),
        ({"options": {"efort": "max"}}, "no option 'efort'. Did you mean 'effort'"),
        ({"options": {"calibration_tokens": "many"}}, "'calibration_tokens' cannot be 'many'"),
        ({"options": {"calibration_tokens": 1e15}}, "'calibration_tokens' cannot be"),
        ({"options": {"time_budget_mins": float("inf")}}, "A time budget"),
        ({"options": {"menu": "9g9"}}, "9g9"),
        ({"options": {"menu": ["4g64"]}}, "'menu' cannot be"),
        ({"options": {"evaluation": "y" * 2_001}}, "'evaluation' cannot be"),
        ({"notify_url": "file:///etc/passwd"}, "notify_url"),
        ({"notify_url": "https://x\n"}, "notify_url"),
        ({"token": "hf_secret"}, "no field 'token'"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_by_the_name_of_its_part(change, words):
    with pytest.raises(RequestError, match=words):
        request_from_json(GOOD | change)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=10,
    )
)
def test_any_json_is_either_a_request_or_refused(raw):
    for candidate in (raw, GOOD | {"options": raw}, GOOD | {"targets_bpw": raw}):
        try:
            request = request_from_json(candidate)
        except RequestError:
            continue
        assert request_from_json(json.loads(json.dumps(request_to_json(request)))) == request


@pytest.mark.parametrize("name", ["public", "source_is_private"])
def test_only_a_request_that_needs_it_says_a_word_that_older_runners_refuse(name):
    assert name not in GOOD
    asked = make_request(**{name: True})
    assert request_from_json(request_to_json(asked)) == asked


def test_an_attempt_that_somebody_else_asks_for_is_theirs_and_for_the_same_result():
    failed = ended(make_running(), Outcome(state=JobState.FAILED), at=NOON)
    asks = make_request(requester="bob", model="ORG/model", notify_url="https://b.example/x")
    request = retried(failed, at=NOON, request=asks).request
    assert (request.requester, request.notify_url) == ("bob", "https://b.example/x")
    assert request.model == failed.request.model
