"""`convert --on hub-jobs`, from a price to a published repo: the Jobs of this Hub really run."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime

import pytest
import typer

from dynquant.cli.app import app
from dynquant.cli.conversion import ConversionOptions
from dynquant.cli.options import words_of
from dynquant.hub.jobs import HubJobs
from dynquant.rented.command import LABEL
from dynquant.rented.hardware import billed_micro_usd
from local_hub import LocalHub
from local_hub.for_commands import hub_for_commands
from tests.command_line import CALIBRATION, HELD_OUT, MODEL, Finished, call, needs_shared
from tests.hardening import long_form
from tests.jobs_image import parquet, programs_of_the_image
from tests.secrets.search import teller
from tests.waiting import PATIENCE_SECS, wait_until

pytestmark = [pytest.mark.hub, needs_shared]

TOKEN = "hf_canaryCanaryCanaryCanary"
SOURCE = "git+https://hub.example/spaces/you/dynquant@" + "0123456789" * 4
SETTLED = (
    "--formats=3g64,4g64,8g64", "--encoder=minmax", "--effort=fast",
    "--calibration=org/text:default:train:text", "--eval=org/text:default:test:text",
    "--calibration-tokens=256", "--eval-tokens=256",
)  # fmt: skip
QUICK = ("org/sample-2m", "--bpw", "4.5", "--to", "you", *SETTLED)


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch) -> Iterator[LocalHub]:
    """A Hub with a model, two texts, and machines whose image brings uv."""
    with hub_for_commands(tmp_path) as hub:
        hub.add_user("you", token=TOKEN, orgs={"team": "write"})
        hub.add("org/sample-2m", MODEL)
        texts = {
            "train.parquet": parquet(CALIBRATION),
            "test.parquet": parquet(HELD_OUT),
        }
        hub.add("org/text", texts, kind="dataset")
        hub.machines.programs.append(programs_of_the_image(tmp_path / "image"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("DYNQUANT_HUB_JOBS_SOURCE", SOURCE)
        yield hub


def convert(*options: str) -> Finished:
    return call("convert", *QUICK, "--on", "hub-jobs", *options)


@pytest.mark.slow
def test_a_model_is_published_by_a_job_that_was_shown_confirmed_and_followed(hub):
    done = convert("--yes", "--json", "--max-dollars", "2").check()
    assert "hardware" in done.err
    assert "l4x1: L4 with 24 GB" in done.err
    assert "you/org__sample-2m-MLX-4.5bpw (public)" in done.err
    assert "Encoding: 100 %" in done.err
    assert [each["repo_id"] for each in done.json["published"]] == ["you/org__sample-2m-MLX-4.5bpw"]
    assert done.json["job"]["stage"] == "COMPLETED"
    assert datetime.fromisoformat(done.json["job"]["created_at"]).tzinfo is not None
    published = hub.repos["model", "you/org__sample-2m-MLX-4.5bpw"]
    assert "dynquant/plan.json" in published.commits[published.branches["main"]].files
    # Once more: the quant is there, so nothing is paid.
    assert convert("--yes", "--json").check().json["job"] is None
    assert len(hub.machines.jobs) == 1


@long_form
@pytest.mark.slow
@pytest.mark.harden("mishaps")
@pytest.mark.parametrize(
    "step",
    ["Installed", "Downloading", "Comparing the original", "Measuring costs", "Encoding",
     "Running in stock MLX", "Evaluating", "Publishing"],
)  # fmt: skip
def test_a_job_that_is_killed_at_any_step_and_asked_for_again_publishes_once(hub, step):
    def kill() -> None:
        (job,) = wait_until(lambda: [*hub.machines.jobs.values()], "the Job")
        wait_until(lambda: any(line.startswith(step) for _, line in job.lines), step)
        hub.machines.end(job, "ERROR", "Job evicted", at_once=True)

    killer = threading.Thread(target=kill)
    killer.start()
    first = convert("--yes", "--max-dollars", "1")
    killer.join()
    again = convert("--yes", "--max-dollars", "1").check()
    assert (first.code, "Job evicted" in first.err) in {(3, True), (0, False)}
    assert "you/org__sample-2m-MLX-4.5bpw (commit" in again.out
    published = hub.repos["model", "you/org__sample-2m-MLX-4.5bpw"]
    assert sum("initial" not in each.title for each in published.commits.values()) == 1
    for job in hub.machines.jobs.values():
        assert billed_micro_usd(13_333, job.spec["timeoutSeconds"]) <= 1_000_000


def test_nothing_starts_without_a_yes(hub, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("n\n"))
    refused = convert()
    assert refused.code == 2
    assert "at most $" in refused.err
    assert "Nothing was started." in refused.err
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "Pass --yes" in convert().err

    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    stdin = io.StringIO()
    monkeypatch.setattr(stdin, "readline", interrupt)
    monkeypatch.setattr(sys, "stdin", stdin)
    assert convert().code == 130
    assert hub.machines.jobs == {}


def test_a_price_that_rises_while_the_question_stands_starts_nothing(hub, monkeypatch):
    def agree(*_args: object, **_options: object) -> bool:
        for each in hub.machines.hardware:
            each["unitCostMicroUSD"] *= 2
        return True

    monkeypatch.setattr(typer, "confirm", agree)
    assert "prices rose" in convert().err
    assert hub.machines.jobs == {}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--max-dollars", "0.01"), "over your limit of $0.01"),
        (("--flavor", "h100x8"), "rents no machine 'h100x8' now"),
        (("--flavor", "cpu-xl"), "no GPU that MLX converts on"),
        (("--namespace", "other"), "'you' cannot run Jobs as 'other'"),
        (("--bpw", "1"), "1 bits per weight cannot be met"),
        (("--to", "other"), "cannot publish as 'other'"),
        (("--calibration", str(CALIBRATION)), "cannot read the files of this machine"),
        (("--eval", "org/none"), "org/none"),
        (("--on", "moon"), "--on must be this-machine or hub-jobs"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(hub, words, sentence):
    done = convert("--yes", *words)
    assert done.code == 2
    assert sentence in " ".join(done.err.split())
    assert hub.machines.jobs == {}


def test_a_folder_of_this_machine_is_refused(hub):
    done = call("convert", MODEL, *QUICK[1:], "--on", "hub-jobs", "--yes")
    assert "cannot read a folder of this machine" in done.err
    assert hub.machines.jobs == {}


def test_an_account_without_credits_is_told(hub):
    hub.machines.credits["you"] = 0.0
    done = convert("--yes")
    assert done.code == 2
    assert "no credits for Jobs" in done.err


def test_a_fine_grained_token_without_the_permission_is_told(hub, monkeypatch):
    hub.add_user("you", token="hf_fine", role="fineGrained")
    monkeypatch.setenv("HF_TOKEN", "hf_fine")
    assert "may not start Jobs in 'you'" in convert("--yes").err


def test_options_for_jobs_without_a_job_are_refused():
    done = call("convert", *QUICK, "--max-dollars", "3")
    assert done.code == 2
    assert "--max-dollars is for Jobs of the Hub: add --on hub-jobs" in done.err


def test_a_checkout_that_a_job_cannot_fetch_is_told(hub, monkeypatch):
    monkeypatch.delenv("DYNQUANT_HUB_JOBS_SOURCE")
    done = convert("--yes")
    assert "DYNQUANT_HUB_JOBS_SOURCE" in done.err
    assert hub.machines.jobs == {}


WITHOUT_MLX = """
import sys
sys.modules |= dict.fromkeys(("mlx", "mlx_lm", "mlx_vlm"))
from dynquant.cli import main
main()
"""


def test_a_machine_without_mlx_sees_the_price_too(hub):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MLX, "convert", *QUICK, "--on", "hub-jobs"],
        env=os.environ | {"HF_ENDPOINT": hub.url},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "at most $" in done.stderr
    assert "Pass --yes" in done.stderr
    assert done.returncode == 2


def test_the_words_of_a_job_give_the_options_that_were_given():
    how = ConversionOptions(
        revision="c0ffee", effort="max", evaluation="org/x", evaluation_tokens=7, distil=True,
        time_budget_mins=1.5, text_only=True, seed=3,
    )  # fmt: skip
    words = words_of(how)
    assert words == [
        "--revision", "c0ffee", "--effort", "max", "--distil", "--time-budget", "1.5",
        "--text-only", "--eval", "org/x", "--eval-tokens", "7", "--seed", "3",
    ]  # fmt: skip
    assert words_of(ConversionOptions()) == []
    command = typer.main.get_command(app).commands["convert"]  # type: ignore[attr-defined]
    read = command.make_context("convert", [*QUICK[:5], *words]).params
    assert ConversionOptions(**{each.name: read[each.name] for each in fields(how)}) == how


WAITS = ["sh", "-c", "echo begun; sleep 1000"]


def start(hub: LocalHub, command: list[str]) -> str:
    jobs = HubJobs()
    job, _ = jobs.start(
        command, flavor="l4x1", timeout_secs=600, labels={LABEL: "c0ffee"}, namespace="you"
    )
    wait_until(lambda: len(hub.machines.jobs[job.id].lines) > 1, "its first line")
    return job.name


def test_a_job_is_followed_again_and_cancelled_by_its_name(hub):
    name = start(hub, ["sh", "-c", "echo one; echo two"])
    for shown in (name, name.partition("/")[2], f"{hub.url}/jobs/{name}"):
        assert "one\ntwo\n" in call("convert", "--follow", shown).check().err
    waiting = start(hub, WAITS)
    assert f"{waiting} is cancelled" in call("convert", "--cancel", waiting).check().err
    ended = call("convert", "--follow", waiting)
    assert ended.code == 3
    assert "The Job was cancelled" in ended.err
    assert "was over already" in call("convert", "--cancel", waiting).check().err


def test_a_job_that_fails_or_is_not_there_ends_the_command_with_a_sentence(hub):
    failed = call("convert", "--follow", start(hub, ["sh", "-c", "echo a sentence; exit 3"]))
    assert failed.code == 3
    assert "a sentence" in failed.err
    assert "The Job failed (Job failed with exit code: 3)" in failed.err
    assert "no such Job" in call("convert", "--follow", "you/c0ffee").err
    assert "is no Job" in call("convert", "--follow", "you/a b").err


@pytest.mark.harden("secrets")
def test_what_a_job_writes_cannot_take_over_the_terminal(hub):
    name = start(hub, ["printf", r"\033]0;evil\007 [bold]x[/] hf_abcdefghijklmnop\n"])
    shown = call("convert", "--follow", name).err
    assert "\033" not in shown
    assert "[bold]x[/]" in shown
    assert "hf_abcdefghijklmnop" not in shown


def test_ctrl_c_leaves_the_job_running_and_says_how_to_come_back(hub):
    name = start(hub, WAITS)
    environment = os.environ | {"HF_ENDPOINT": hub.url}
    child = subprocess.Popen(
        [sys.executable, "-m", "dynquant", "convert", "--follow", name],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    assert child.stderr.readline() == "begun\n"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=PATIENCE_SECS)
    assert child.returncode == 130
    assert f"dynquant convert --follow {name}" in said
    assert f"dynquant convert --cancel {name}" in said
    assert HubJobs().look(name).stage == "RUNNING"


@pytest.mark.harden("secrets")
def test_no_token_is_in_output_labels_specs_or_logs(hub, tmp_path):
    hits = teller([TOKEN])
    hub.machines.room.clear()  # nothing has to run for this
    child = subprocess.Popen(
        [sys.executable, "-m", "dynquant", "--verbose", "convert", *QUICK, "--on", "hub-jobs",
         "--yes", "--json"],
        env=os.environ | {"HF_ENDPOINT": hub.url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    (job,) = wait_until(lambda: [*hub.machines.jobs.values()], "the Job")
    hub.machines.end(job, "CANCELED")
    out, err = child.communicate(timeout=PATIENCE_SECS)
    assert b"The Job was cancelled" in err
    seen = HubJobs().look(f"you/{job.id}")
    assert job.secrets == {"HF_TOKEN": TOKEN}
    shown = json.dumps([job.spec, job.lines, repr(job), str(seen)], default=str).encode()
    assert hits(out + err + shown) == []
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert hits(written) == []
