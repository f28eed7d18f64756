"""Requests that cannot work are refused before a model is downloaded, measured or loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynquant.report.artefacts import cost_table_from_json
from local_hub import LocalHub
from local_hub.for_commands import hub_for_commands
from tests.command_line import (
    CALIBRATION,
    HELD_OUT,
    MODEL,
    QUICK,
    Finished,
    call,
    copy_model,
    edit_config,
    needs_shared,
    quick_table,
)

pytestmark = [pytest.mark.hub, needs_shared, pytest.mark.harden("newcomers")]

REPO = "org/sample"
TOKEN, READER = "hf_" + "you1" * 9, "hf_" + "read" * 9
TEXTS = tuple(word for word in QUICK if word.startswith(("--calibration=", "--eval=")))

MAX_HEADER_BYTES = 500_000
"""Of the 5 MB of MODEL's weights."""


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[LocalHub]:
    with hub_for_commands(tmp_path_factory.mktemp("hub")) as hub:
        hub.add_user("you", token=TOKEN, orgs={"club": "read"})
        hub.add_user("you", token=READER, role="read")
        hub.add(REPO, MODEL)
        hub.add("you/taken-4.0", {"README.md": b"# Mine"})
        yield hub


@pytest.fixture(autouse=True)
def out(hub, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)  # for options that are left out
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.requests.clear()
    return tmp_path / "out"


def assert_refused_before_work(done: Finished, hub: LocalHub, says: str, *, code: int = 2) -> None:
    assert (done.code, done.out) == (code, ""), done
    assert says in done.err.replace("\n", " ")
    assert "Measuring" not in done.err
    assert "Downloading" not in done.err
    weights = sum(request.num_bytes for request in hub.asked(r"GET .*safetensors$"))
    assert weights < MAX_HEADER_BYTES
    hub.requests.clear()


RECIPES = {
    "--encoder=best": "There is no encoder 'best'",
    "--effort=best": "There is no effort 'best'",
    "--formats=7g64": "There is no format '7g64'",
    "--formats=,": "--formats is empty",
    "--calibration=./missing.txt": "There is no file",
    "--calibration=org/none": "no dataset 'org/none'",
    "--calibration-tokens=0": "Invalid value for '--calibration-tokens'",
    "--calibration-tokens=1000000000": "Invalid value for '--calibration-tokens'",
    "--seed=-1": "Invalid value for '--seed'",
    "--revision=nowhere": "no revision 'nowhere'",
}
CONVERSIONS = RECIPES | {
    "--bpw=abc": "--bpw must be numbers",
    "--bpw=nan": "positive number",
    "--bpw=-4": "positive number",
    "--bpw=1": "feasible range",
    "--bpw=17": "feasible range",
    "--bpw=4,4.0": "Two of the targets are the same",
    "--time-budget=-1": "Invalid value for '--time-budget'",
    "--time-budget=inf": "Invalid value for '--time-budget'",
    "--eval=./missing.txt": "There is no file",
    f"--eval={CALIBRATION}": "is the one to calibrate on",
    "--eval-tokens=0": "Invalid value for '--eval-tokens'",
    "--eval-tokens=1000000000": "Invalid value for '--eval-tokens'",
    "--context=0": "Invalid value for '--context'",
    "--cost-table=missing.json": "There is no file 'missing.json'",
}


@pytest.mark.parametrize("option", RECIPES)
def test_measuring_refuses_an_option_before_the_download(option, hub, out):
    words = [word for word in TEXTS if word.startswith("--calibration")]
    done = call("measure", REPO, f"--out={out}", *words, option)
    assert_refused_before_work(done, hub, RECIPES[option])


@pytest.mark.parametrize("option", CONVERSIONS)
@pytest.mark.parametrize("command", ["quantize", "convert"])
def test_a_conversion_refuses_an_option_before_the_download(command, option, hub, out):
    to = ["--to=you"] if command == "convert" else []
    done = call(command, REPO, "--bpw=4", f"--out={out}", *to, *TEXTS, option)
    assert_refused_before_work(done, hub, CONVERSIONS[option])
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--low=8g64", "--high=4g64"), "smaller than"),
        (("--low=2g64", "--high=3g64", "--bpw=8"), "feasible range"),
        (("--tolerance=nan",), "tolerance must lie between 0 and 1"),
        (("--low=1g64",), "There is no format '1g64'"),
        (("--sensitivities=other.json",), "of another model"),
    ],
)
def test_the_alignment_method_refuses_its_options_before_the_download(options, says, hub, out):
    Path("other.json").write_text('[["model.layers.99.self_attn.q_proj", 1.0]]')
    words = ("--method=alignment", *TEXTS, *options)
    done = call("quantize", REPO, "--bpw=4.8", f"--out={out}", *words)
    assert_refused_before_work(done, hub, says)


@pytest.mark.parametrize(
    ("to", "says"),
    [
        ("you/a/b", "cannot be the id of a repo"),
        ("you@home", "cannot be the id of a repo"),
        ("somebody", "somebody"),
        ("club", "club"),
        ("you/taken-{bpw}", "taken-4.0"),
    ],
)
def test_a_destination_that_may_not_be_written_is_refused_before_the_download(to, says, hub, out):
    done = call("convert", REPO, "--bpw=4", f"--to={to}", f"--out={out}", *TEXTS)
    assert_refused_before_work(done, hub, says)


def test_a_token_that_may_not_write_is_refused_before_the_download(hub, out, monkeypatch):
    words = ("convert", REPO, "--bpw=4", "--to=you", f"--out={out}", *TEXTS)
    monkeypatch.setenv("HF_TOKEN", READER)
    assert_refused_before_work(call(*words), hub, "may")
    monkeypatch.delenv("HF_TOKEN")
    assert_refused_before_work(call(*words), hub, "HF_TOKEN")


def test_a_place_that_cannot_take_the_result_is_refused_before_the_download(
    hub, out, tmp_path, monkeypatch
):
    out.write_text("mine")
    for command, words in (
        ("measure", ()),
        ("quantize", ("--bpw=4",)),
        ("convert", ("--bpw=4", "--to=you")),
    ):
        texts = TEXTS if command != "measure" else TEXTS[:1]
        done = call(command, REPO, f"--out={out}", *words, *texts)
        assert_refused_before_work(done, hub, "Pass another --out")
    holder = copy_model(tmp_path / "holder" / "sample-MLX-4.0bpw").parent
    done = call("quantize", REPO, "--bpw=4", f"--out={holder}", *TEXTS)
    assert_refused_before_work(done, hub, "which dynquant did not make")

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 9}))
    done = call("quantize", REPO, "--bpw=4", f"--out={tmp_path / 'new'}", *TEXTS)
    assert_refused_before_work(done, hub, "the disk of --out has 9 bytes free", code=3)


def test_a_cost_table_that_does_not_fit_is_refused_before_the_download(
    hub, out, tmp_path, tmp_path_factory
):
    table = json.loads(quick_table(tmp_path_factory).read_text())
    table["source_sha"] = hub.repos["model", REPO].branches["main"]
    of_repo = tmp_path / "table.json"
    of_repo.write_text(json.dumps(table))
    cost_table_from_json(of_repo.read_text(), name="it")  # it is one
    words = ("quantize", REPO, "--bpw=4", f"--out={out}", *QUICK)
    for options, says in (
        ((f"--cost-table={quick_table(tmp_path_factory)}",), "another model ('sample-2m')"),
        ((f"--cost-table={of_repo}", "--encoder=wls"), "--encoder minmax"),
        ((f"--cost-table={of_repo}", "--seed=1"), "--seed 0"),
        ((f"--cost-table={of_repo}", "--formats=3g64,5g64"), "no cost of '5g64'"),
    ):  # fmt: skip
        assert_refused_before_work(call(*words, *options), hub, says)


def test_evaluating_refuses_what_does_not_fit_before_the_download(hub, tmp_path):
    other = MODEL.parent / "tiny-qwen3"
    for folder, words, says in (
        (other, (f"--eval={HELD_OUT}",), "not of the same model"),
        (MODEL, ("--eval=./missing.txt",), "There is no file"),
        (MODEL, (f"--eval={HELD_OUT}", "--eval-tokens=0"), "Invalid value for '--eval-tokens'"),
        (tmp_path, (f"--eval={HELD_OUT}",), "no config.json"),
    ):
        done = call("evaluate", folder, f"--reference={REPO}", *words)
        assert_refused_before_work(done, hub, says)


def test_publishing_refuses_a_destination_before_a_model_is_loaded(hub, tmp_path, monkeypatch):
    from dynquant.cli import wiring
    from tests.cli.test_publishing import Finished as Model
    from tests.report.card_factories import make_facts

    def loaded(*_args: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(wiring, "verify_finished", loaded)
    folder = Model(tmp_path).folder
    assert folder.name == make_facts(2).name
    for to in ("somebody", "club", "you/a/b", "you/taken-4.0"):
        assert_refused_before_work(call("publish", folder, to), hub, to.partition("/")[0])


def test_planning_refuses_a_model_of_the_hub_by_its_headers(hub, tmp_path):
    hub.add("org/odd", edit_config(copy_model(tmp_path / "odd"), model_type="gpt99"))
    for command in (("quantize", f"--out={tmp_path / 'out'}", *TEXTS), ("plan",)):
        done = call(command[0], "org/odd", "--bpw=4", *command[1:])
        assert_refused_before_work(done, hub, "no architecture for model_type 'gpt99'")
