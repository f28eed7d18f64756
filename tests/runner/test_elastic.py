"""Elastic runners: Jobs start while work waits, within the budget, and do the work for real."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dynquant.errors import InvalidModelError, InvalidOptionError
from dynquant.hub.inbox import HubInbox
from dynquant.hub.jobs import HubJobs
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.job import Job
from dynquant.jobs.request import JobRequest
from dynquant.quant.formats import parse_menu
from dynquant.quant.options import RecipeOptions
from dynquant.quant.recipe import RECIPE_VERSION
from dynquant.rented.budget import Budget
from dynquant.rented.job import RentedJob
from dynquant.rented.needs import Needs
from dynquant.runner import doctor, elastic
from dynquant.runner.elastic import ElasticRunners
from dynquant.settings import Settings
from local_hub import LocalHub
from local_hub.for_commands import hub_for_commands
from tests.command_line import CALIBRATION, HELD_OUT, MODEL, needs_shared
from tests.hardening import long_form
from tests.jobs_image import parquet, programs_of_the_image
from tests.rented.factories import GB, make_needs
from tests.secrets.search import teller
from tests.waiting import PATIENCE_SECS, wait_until

pytestmark = [pytest.mark.hub, needs_shared]

TOKEN, SECRET = "hf_canaryCanaryCanaryCanary", "canary-of-the-space-0123456789"
INBOX = "you/inbox"
REQUEST = JobRequest(model="org/sample-2m", targets_bpw=(4.5,), requester="ann")


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch) -> Iterator[LocalHub]:
    with hub_for_commands(tmp_path) as hub:
        hub.add_user("you", token=TOKEN)
        hub.add("org/sample-2m", MODEL)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        hub.machines.room.clear()  # Jobs wait, unless a test lets them run
        yield hub


class Field:
    """Elastic runners over a list of waiting requests."""

    def __init__(self, **overrides: Any) -> None:
        self.waiting = [REQUEST]
        self.needs: dict[str, Needs | Exception] = {}
        self.now = datetime.now(UTC)
        fixed: dict[str, Any] = {
            "budget": Budget(at_once=1, micro_usd_per_day=5_000_000),
            "namespace": "you",
            "flavor": None,
            "requirement": "dynquant==0.1.0",
            "environment": {
                "DYNQUANT_INBOX_REPO": INBOX,
                "DYNQUANT_SPACE_SECRET": SECRET,
                "DYNQUANT_HOME": "/home/you",
                "DYNQUANT_WATCH_CONFIG": "watch.yaml",
            },
        }
        self.runners = ElasticRunners(
            HubJobs(sleep=lambda _: None),
            waiting=lambda: self.waiting,
            needs=self.needs_of,
            now=lambda: self.now,
            **fixed | overrides,
        )

    def needs_of(self, request: JobRequest) -> Needs:
        found = self.needs.get(request.model, make_needs())
        if isinstance(found, Exception):
            raise found
        return found


def test_a_job_starts_while_work_waits_and_one_alone(hub):
    field = Field()
    job = field.runners.do_round()
    assert job is not None
    assert job.flavor == "l4x1"
    assert field.runners.do_round() is None
    assert len(hub.machines.jobs) == 1
    assert hub.machines.jobs[job.id].spec["command"][-3:] == ["runner", "--until-idle", "3"]


def test_without_work_nothing_starts(hub):
    field = Field()
    field.waiting = []
    assert field.runners.do_round() is None
    assert hub.machines.jobs == {}
    assert hub.asked("/api/jobs") == []


@pytest.mark.harden("secrets")
def test_a_job_gets_a_runners_settings_and_secrets_are_secrets(hub):
    job = Field().runners.do_round()
    assert job is not None
    started = hub.machines.jobs[job.id]
    assert started.spec["environment"] == {"DYNQUANT_INBOX_REPO": INBOX}
    assert started.secrets == {"HF_TOKEN": TOKEN, "DYNQUANT_SPACE_SECRET": SECRET}
    assert teller([TOKEN, SECRET])(f"{started.spec} {job}".encode()) == []


def end(hub: LocalHub, message: str = "Job failed with exit code: 1") -> None:
    for job in hub.machines.jobs.values():
        hub.machines.end(job, "ERROR", message)
        wait_until(partial(getattr, job, "is_over"), "the Job to end")


@pytest.mark.harden("mishaps")
def test_a_job_that_dies_has_a_successor_and_the_third_has_none(hub):
    field = Field()
    for _ in range(3):
        assert field.runners.do_round() is not None
        end(hub)
    assert field.runners.do_round() is None
    assert len(hub.machines.jobs) == 3
    field.now += timedelta(days=1, minutes=1)
    assert field.runners.do_round() is not None


def test_a_process_that_starts_anew_knows_what_was_spent(hub):
    assert Field().runners.do_round() is not None
    end(hub, "Job timeout")
    poor = Budget(at_once=1, micro_usd_per_day=100_000)
    assert Field(budget=poor).runners.do_round() is None
    assert len(hub.machines.jobs) == 1


@pytest.mark.harden("mishaps")
def test_two_processes_that_start_at_once_spend_no_more_than_one(hub, monkeypatch):
    """The second has looked before the first started its Job."""
    first = Field(budget=Budget(at_once=2, micro_usd_per_day=2_500_000))
    second = Field(budget=Budget(at_once=2, micro_usd_per_day=2_500_000))
    looks: Iterator[list[RentedJob]] = iter([[]])
    recent = second.runners._recent
    monkeypatch.setattr(second.runners, "_recent", lambda: next(looks, None) or recent())
    jobs = second.runners._jobs
    start = jobs.start

    def start_late(*words: Any, **options: Any) -> Any:
        assert first.runners.do_round() is not None
        return start(*words, **options)

    monkeypatch.setattr(jobs, "start", start_late)
    assert second.runners.do_round() is None
    ended = [job.wanted_end for job in hub.machines.jobs.values()]
    assert ended == [None, ("CANCELED", None)]


@pytest.mark.harden("mishaps")
def test_a_request_that_no_job_can_do_keeps_no_other_waiting(hub):
    field = Field()
    field.waiting = [
        JobRequest(model="org/broken", targets_bpw=(4.5,), requester="ann"),
        JobRequest(model="org/huge", targets_bpw=(4.5,), requester="ann"),
        REQUEST,
    ]
    field.needs = {
        "org/broken": InvalidModelError("No weights."),
        "org/huge": make_needs(memory_bytes=9_000 * GB),
    }
    assert field.runners.do_round() is not None
    field.waiting = field.waiting[:2]
    end(hub, "Job timeout")
    assert field.runners.do_round() is None


def test_the_doctor_tells_of_the_jobs_and_their_price(hub, tmp_path):
    job = Field().runners.do_round()
    assert job is not None
    environment = {
        "DYNQUANT_HOME": str(tmp_path),
        "DYNQUANT_INBOX_REPO": INBOX,
        "DYNQUANT_HUB_JOBS_DOLLARS_PER_DAY": "5",
    }
    found = {each.what: each for each in doctor.examine(environment)}["Hub Jobs"]
    assert found.good
    assert "'you' may start Jobs; 1 in 24 hours, for at most $3." in found.sentence
    assert f"of $5.00; running: {job.url}." in found.sentence


def settings(**variables: str) -> Settings:
    return Settings.from_environment({f"DYNQUANT_{name}": each for name, each in variables.items()})


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"INBOX_REPO": INBOX}, "set DYNQUANT_HUB_JOBS_DOLLARS_PER_DAY"),
        ({"HUB_JOBS_DOLLARS_PER_DAY": "5"}, "cannot reach the database of this machine"),
        (
            {"HUB_JOBS_DOLLARS_PER_DAY": "5", "INBOX_REPO": INBOX, "HUB_JOBS_AT_ONCE": "2"},
            "would all do the same requests",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(variables, words):
    with pytest.raises(InvalidOptionError, match=words):
        elastic._budget(settings(**variables))


def submitted(board: DatabaseBoard, hub: LocalHub, request: JobRequest = REQUEST) -> Job:
    sha = hub.repos["model", request.model].branches["main"]
    return board.submit(
        request, revision_sha=sha, source_is_private=False, recipe_version=RECIPE_VERSION
    )


def test_a_job_waits_for_elastic_runners_where_no_live_runner_can_take_it(hub, tmp_path, postgres):
    url = postgres.new_database()
    named = settings(DATABASE_URL=url, HOME=str(tmp_path))
    with closing(DatabaseBoard(url)) as board, elastic._waiting_in(named) as waiting:
        assert waiting() == []
        submitted(board, hub)
        assert [each.model for each in waiting()] == ["org/sample-2m"]


@contextmanager
def elastic_runners(
    hub: LocalHub, folder: Path, *, idle_mins: str = "3", **variables: str
) -> Iterator[None]:
    """`dynquant runner --elastic` as an operator starts it; Jobs run in an image."""
    hub.machines.programs.append(programs_of_the_image(folder / "image", idle_mins=idle_mins))
    hub.machines.room.set()
    process = subprocess.Popen(
        [sys.executable, "-m", "dynquant", "runner", "--elastic"],
        env=os.environ
        | {
            "HF_ENDPOINT": hub.url,
            "DYNQUANT_HOME": str(folder / "elastic"),
            "DYNQUANT_HUB_JOBS_DOLLARS_PER_DAY": "5",
            "DYNQUANT_HUB_JOBS_SOURCE": "0.1.0",
        }
        | variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield
    finally:
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE_SECS)
    assert process.returncode == 0, said


@pytest.mark.slow
def test_a_request_in_the_inbox_is_answered_by_a_job_that_ends_by_itself(hub, tmp_path):
    inbox = HubInbox(INBOX, endpoint=hub.url, token=TOKEN)
    name = inbox.send(replace(REQUEST, destination="somebody-else"))
    with elastic_runners(hub, tmp_path, idle_mins="0.05", DYNQUANT_INBOX_REPO=INBOX):
        result = wait_until(lambda: inbox.result(name), "the result in the inbox")
        assert result is not None
        assert "does not publish to 'somebody-else'" in result["sentence"]
        (job,) = hub.machines.jobs.values()
        wait_until(lambda: job.is_over, "the Job to end by itself")
    assert job.stage == "COMPLETED", job.lines[-5:]
    assert any("This runner ends" in line for _, line in job.lines)


QUICK = RecipeOptions(
    menu=parse_menu("3g64,4g64,8g64"), encoder="minmax", effort="fast", calibration_tokens=256,
    evaluation_tokens=256, calibration="org/text:default:train:text",
    evaluation="org/text:default:test:text",
)  # fmt: skip


@long_form
@pytest.mark.slow
@pytest.mark.harden("mishaps")
def test_a_job_that_is_evicted_while_it_converts_loses_nothing_and_doubles_nothing(
    hub, tmp_path, postgres
):
    texts = {"train.parquet": parquet(CALIBRATION), "test.parquet": parquet(HELD_OUT)}
    hub.add("org/text", texts, kind="dataset")
    url = postgres.new_database()
    request = replace(REQUEST, requester="local:ann", destination="you", options=QUICK)
    with (
        closing(DatabaseBoard(url)) as board,
        elastic_runners(hub, tmp_path, DYNQUANT_DATABASE_URL=url),
    ):
        asked = submitted(board, hub, request)

        def has_begun() -> bool:
            return any("encode begins" in event.sentence for event in board.log(asked.id))

        wait_until(has_begun, "the encoding to begin")
        (first,) = hub.machines.jobs.values()
        hub.machines.end(first, "ERROR", "Job evicted", at_once=True)
        wait_until(lambda: board.get(asked.id).is_over, "the job to end")
        done = board.get(asked.id)
        assert (done.state, done.attempt) == ("published", 1), done.sentence
    assert [job.stage for job in hub.machines.jobs.values()] == ["ERROR", "RUNNING"]
    published = hub.repos["model", done.results[0].repo_id]
    assert sum("commit" not in each.title for each in published.commits.values()) == 1
