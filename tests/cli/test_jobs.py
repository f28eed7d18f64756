"""The commands around jobs, over a database and without a runner."""

from __future__ import annotations

import getpass
import io
from collections.abc import Iterator
from contextlib import closing

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.database import Database
from dynquant.jobs.job import JobState, Outcome, PublishedRepo
from dynquant.jobs.served import announced
from dynquant.jobs.store import JobStore
from dynquant.model.naming import local_name
from dynquant.report.finished_files import PLAN
from local_hub import LocalHub
from local_hub.for_commands import hub_for_commands
from tests.command_line import MODEL, call, needs_shared

pytestmark = [pytest.mark.hub, needs_shared]


@pytest.fixture(autouse=True)
def hub(tmp_path) -> Iterator[LocalHub]:
    """An empty queue, and a Hub with one model and one text."""
    with hub_for_commands(tmp_path) as hub:
        hub.add("org/sample-2m", MODEL)
        sink = io.BytesIO()
        pq.write_table(pa.table({"text": ["Once upon a time."]}), sink)
        hub.add("org/text", {"train.parquet": sink.getvalue()}, kind="dataset")
        yield hub


def submit(*options: str):
    return call("submit", "org/sample-2m", "--bpw", "4.5", "--to", "you", *options)


def test_a_request_is_queued_once_and_shown(tmp_path):
    first = submit("--json").check().json["job"]
    again = submit("--json").check().json["job"]
    assert first["id"] == again["id"]
    assert (first["state"], first["position"]) == ("waiting", 1)
    assert first["request"]["requester"] == local_name(getpass.getuser())
    (listed,) = call("jobs", "list", "--json").check().json["jobs"]
    assert listed["id"] == first["id"]
    shown = call("jobs", "list").check().out
    assert first["id"] in shown
    assert "none; start one with dynquant runner" in shown
    assert "number 1 in the line" in call("jobs", "show", first["id"]).check().out
    assert "Asked for by" in call("jobs", "logs", first["id"]).check().out


def test_a_list_and_a_job_show_their_times_in_the_time_zone_of_this_machine(tmp_path):
    job_id = submit("--json").check().json["job"]["id"]
    with closing(DatabaseBoard(f"sqlite:///{tmp_path}/jobs.sqlite")) as board:
        at = f"{board.get(job_id).submitted_at.astimezone():%Y-%m-%d %H:%M}"
    assert at in call("jobs", "list").check().out
    assert f"asked for {at}" in call("jobs", "show", job_id).check().out
    assert f"ended {at[:10]}" in call("jobs", "cancel", job_id).check().out


def test_jobs_of_served_pages_are_found_where_no_variable_names_a_queue(tmp_path, monkeypatch):
    job_id = submit("--json").check().json["job"]["id"]
    monkeypatch.delenv("DYNQUANT_HOME")
    monkeypatch.delenv("DYNQUANT_DATABASE_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    assert call("jobs", "list", "--json").check().json["jobs"] == []
    home = tmp_path / "person" / ".dynquant"
    with announced(f"sqlite:///{tmp_path}/jobs.sqlite", home=home):
        found = call("jobs", "list", "--json").check()
        assert [each["id"] for each in found.json["jobs"]] == [job_id]
        assert "make serve" in found.err


@pytest.mark.parametrize(
    ("option", "asked"),
    [(None, (False, False)), ("--private", (True, False)), ("--public", (False, True))],
)
def test_who_may_read_the_result_is_asked_for_or_left_to_the_model(option, asked):
    options = () if option is None else (option,)
    request = submit(*options, "--json").check().json["job"]["request"]
    assert (request["private"], request.get("public", False)) == asked


def test_asking_for_it_in_private_is_another_job():
    first = submit("--json").check().json["job"]["id"]
    assert submit("--private", "--json").check().json["job"]["id"] != first


def test_an_address_to_tell_that_comes_too_late_is_said_to():
    assert submit("--notify", "https://a.example/x").check().err == ""
    assert "given then is notified" in submit("--notify", "https://b.example/x").check().err
    call("submit", "org/sample-2m", "--bpw", "6", "--to", "you").check()
    late = call(
        *("submit", "org/sample-2m", "--bpw", "6", "--to", "you"),
        *("--notify", "https://a.example/x"),
    )
    assert "no address is notified" in late.check().err


def test_a_job_is_cancelled_and_tried_again():
    identity = submit("--json").check().json["job"]["id"]
    told = call("jobs", "cancel", identity).check().out
    assert "  cancelled\n" in told
    assert call("jobs", "list", "--state", "waiting", "--json").check().json["jobs"] == []
    assert "waiting" in call("jobs", "retry", identity).check().out
    job = call("jobs", "show", identity, "--json").check().json["job"]
    assert job["attempt"] == 2
    assert [attempt["state"] for attempt in job["history"]] == ["cancelled"]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("submit", "org/none", "--bpw", "4", "--to", "you"), 2, "no model 'org/none'"),
        (("submit", "org/sample-2m", "--bpw", "four", "--to", "you"), 2, "--bpw must be numbers"),
        (("submit", "org/sample-2m", "--bpw", "4", "--to", "you", "--formats", "7g1"), 2, "7g1"),
        (
            ("submit", "org/sample-2m", "--bpw", "4", "--to", "you", "--notify", "http://a.b/c"),
            2,
            "begin with https://",
        ),
        (("submit", "./sample-2m", "--bpw", "4", "--to", "you"), 2, "no folder './sample-2m'"),
        (("submit", str(MODEL), "--bpw", "4", "--to", "you"), 2, "Runners take models from the"),
        (("jobs", "show", "nothing"), 2, "nothing"),
        (("jobs", "cancel", "nothing"), 2, "nothing"),
        (("jobs", "retry", "nothing"), 2, "nothing"),
        (("jobs", "logs", "nothing"), 2, "nothing"),
        (("jobs", "list", "--state", "asleep"), 2, "no state 'asleep'"),
    ],
)
def test_what_makes_no_sense_is_said(arguments, code, says):
    done = call(*arguments)
    assert done.code == code
    assert says in done.err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--bpw=nan",), "positive number"),
        (("--bpw=4,4.0",), "Two of the targets are the same"),
        (("--to=you/fixed-name", "--bpw=4,5"), "is one repo, and there are 2 models"),
        (("--to=a/b/c",), "cannot be the id of a repo"),
        (("--to=me@home",), "cannot be the id of a repo"),
        (("--effort=best",), "There is no effort"),
        (("--calibration=org/none",), "no dataset 'org/none'"),
        (("--calibration=org/text", "--eval=org/text"), "is the one to calibrate on"),
        (("--eval=org/text:default:test",), "no split 'test'"),
        (("--notify=ftp://a.b",), "begin with https://"),
        (("--eval-images=org/none",), "no dataset 'org/none'"),
        (("--eval-images=org/text",), "has no column 'image' of images"),
        (("--calibration-images=./photos",), "There is no folder './photos'"),
    ],
)
def test_what_no_runner_could_do_is_not_queued(options, says):
    done = submit(*options)
    assert done.code == 2
    assert says in done.err
    assert call("jobs", "list", "--json").check().json["jobs"] == []


@pytest.mark.parametrize("formats", ["8g64,4g64", "4g64, 8g64", "4g64,8g64,8g64"])
def test_the_same_formats_in_another_spelling_are_the_same_job(formats):
    first = submit("--formats", "4g64,8g64", "--json").check().json["job"]["id"]
    assert submit("--formats", formats, "--json").check().json["job"]["id"] == first


def test_who_asks_too_often_is_told_when_to_come_back(monkeypatch):
    monkeypatch.setenv("DYNQUANT_DAILY_LIMIT", "1")
    submit().check()
    done = call("submit", "org/sample-2m", "--bpw", "6", "--to", "you")
    assert done.code == 3
    assert "within 24 hours" in done.err


def test_the_options_of_a_request_reach_the_job(tmp_path):
    submit("--formats", "4g64,8g64", "--calibration", "org/text", "--private").check()
    board = DatabaseBoard(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    (job,) = board.list()
    board.close()
    assert job.request.options.to_json() == {"menu": "4g64,8g64", "calibration": "org/text"}
    assert job.request.private
    assert job.request.targets_bpw == (4.5,)


def publish(tmp_path, hub: LocalHub, job_id: str) -> None:
    """A runner does the job: what it publishes is on the Hub."""
    results = (PublishedRepo(repo_id="you/sample-2m-MLX-4.5bpw", commit_sha="c0ffee"),)
    hub.add(results[0].repo_id, {PLAN: b"{}"})
    with closing(Database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")) as database:
        store = JobStore(database)
        assert store.take(job_id, runner="mac", session="s") is not None
        outcome = Outcome(state=JobState.PUBLISHED, results=results)
        assert store.end(job_id, outcome, session="s", busy_secs=1.0)


def test_what_was_deleted_on_the_hub_is_made_again(tmp_path, hub):
    job_id = submit("--json").check().json["job"]["id"]
    publish(tmp_path, hub, job_id)
    assert submit("--json").check().json["job"]["state"] == "published"
    del hub.repos["model", "you/sample-2m-MLX-4.5bpw"]
    again = submit("--json").check().json["job"]
    assert (again["id"], again["state"], again["attempt"]) == (job_id, "waiting", 2)
    assert [each["state"] for each in again["history"]] == ["published"]


def test_a_job_of_a_private_model_is_known_to_be_one(hub, monkeypatch):
    hub.add_user("me", token="hf_me")
    hub.add("me/mine", MODEL, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    words = ("submit", "me/mine", "--bpw", "4.5", "--to", "me", "--json")
    assert call(*words).check().json["job"]["request"]["source_is_private"]
    assert "source_is_private" not in submit("--json").check().json["job"]["request"]
