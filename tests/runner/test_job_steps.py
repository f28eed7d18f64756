"""The real steps of a job: MLX in child processes, the real client, a Hub on this machine."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, close_session, constants, snapshot_download

from dynquant.convert import STEPS
from dynquant.errors import (
    DestinationError,
    InfeasibleTargetError,
    NotEnoughMemoryError,
    RequestError,
    StorageFullError,
)
from dynquant.hub import HubDatasets, HubModels, HubPublisher
from dynquant.jobs.job import StepProgress
from dynquant.jobs.job_text import results_from_text
from dynquant.jobs.ports import StepRunner
from dynquant.jobs.request import JobRequest
from dynquant.model.naming import local_name
from dynquant.runner.child_process import ChildCancelledError
from dynquant.runner.job_steps import JobSteps
from dynquant.texts.corpus import Corpus
from local_hub import LocalHub
from local_hub.texts import add_default_texts
from tests.command_line import CALIBRATION, HELD_OUT, MODEL, needs_shared

pytestmark = [pytest.mark.hub, pytest.mark.slow, needs_shared]

TOKEN = "hf_canary_token"
REPOS = ("you/org__sample-2m-MLX-4.0bpw", "you/org__sample-2m-MLX-6.0bpw")
OPTIONS = {
    "menu": "3g64,4g64,8g64",
    "encoder": "minmax",
    "effort": "fast",
    "calibration": str(CALIBRATION),
    "evaluation": str(HELD_OUT),
    "calibration_tokens": 512,
    "evaluation_tokens": 512,
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LocalHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        hub.add("org/sample-2m", MODEL)
        hub.add_user("you", token=TOKEN)
        yield hub
        close_session()


def steps(hub, home: Path, **options) -> JobSteps:
    def no_wait(_secs: float) -> None:
        pass

    return JobSteps(
        home=home,
        publisher=HubPublisher(endpoint=hub.url, token=TOKEN, sleep=no_wait),
        texts=Corpus(
            open_dataset=HubDatasets(endpoint=hub.url).open,
            allow_files=options.pop("allow_files", True),
        ),
        open_hub=lambda: HubModels(endpoint=hub.url, cache_dir=home / "cache", sleep=no_wait),
        **{"max_memory_bytes": 8 * 10**9} | options,
    )


def request(hub, **overrides) -> JobRequest:
    fields = {
        "model": "org/sample-2m",
        "revision": hub.repos["model", "org/sample-2m"].at("main").sha,
        "targets_bpw": (4.0, 6.0),
        "destination": "you",
        "requester": local_name("someone"),
        "options": OPTIONS,
    }
    return JobRequest(**fields | overrides)


def run(runner: StepRunner, step: str, asked: JobRequest, results, reports=None, is_cancelled=None):
    return runner.run(
        step,
        asked,
        results,
        job_id="job-1",
        report=(reports if reports is not None else []).append,
        is_cancelled=is_cancelled or (lambda: False),
    )


def resolved_ids(hub, home: Path, asked: JobRequest) -> list[str]:
    """The repos of a job."""
    found = json.loads(run(steps(hub, home), "resolve", asked, {}))
    return [*found["repo_ids"].values()]


@pytest.mark.harden("names")
def test_the_name_of_a_well_known_model_cannot_be_taken_before_it_comes(hub, tmp_path):
    hub.add("evil/Qwen3-8B", MODEL)
    hub.add("Qwen/Qwen3-8B", MODEL)
    names = {}
    for author in ("evil", "Qwen"):
        repo = hub.repos["model", f"{author}/Qwen3-8B"]
        asked = request(hub, model=repo.id, revision=repo.at("main").sha, targets_bpw=(4.5,))
        (names[author],) = resolved_ids(hub, tmp_path, asked)
    assert names == {
        "evil": "you/evil__Qwen3-8B-MLX-4.5bpw",
        "Qwen": "you/Qwen3-8B-MLX-4.5bpw",
    }


@pytest.mark.harden("names")
def test_a_strangers_other_recipe_or_old_commit_gets_a_name_of_its_own(hub, tmp_path):
    add_default_texts(hub)
    repo = hub.repos["model", "org/sample-2m"]
    old = repo.at("main").sha
    default = [name.replace("4.0", "6.0") for name in REPOS[:1]]
    ask = {"targets_bpw": (6.0,), "requester": "visitor"}
    assert resolved_ids(hub, tmp_path, request(hub, options={}, **ask)) == default
    repo.commit({"README.md": b"# Another card\n"})
    asked = request(hub, revision=old, options={}, **ask)
    assert resolved_ids(hub, tmp_path, asked) == default  # the same model with another card
    repo.commit({"config.json": (MODEL / "config.json").read_bytes() + b"\n"})
    poorer = [
        {"revision": old, "options": {}},
        {"options": {"menu": "4g64,8g64"}},
        {"options": {"effort": "fast"}},
        {"options": {"calibration": "allenai/tulu-3-sft-mixture:default:train"}},
    ]
    names = [resolved_ids(hub, tmp_path, request(hub, **ask | each))[0] for each in poorer]
    assert all(re.fullmatch(re.escape(default[0]) + "-custom-[0-9a-f]{12}", each) for each in names)
    assert len(set(names)) == len(poorer)
    ours = request(hub, **ask | poorer[1] | {"requester": local_name("operator")})
    assert resolved_ids(hub, tmp_path, ours) == default


@pytest.mark.harden("names")
def test_a_stranger_has_no_pull_request_quantized_under_the_models_name(hub, tmp_path, harden):
    add_default_texts(hub)
    repo = hub.repos["model", "org/sample-2m"]
    hub.add_user("mallory", token="hf_mallory")
    theirs = HfApi(endpoint=hub.url, token="hf_mallory").create_commit(
        repo.id,
        [CommitOperationAdd("config.json", (MODEL / "config.json").read_bytes() + b"\n")],
        commit_message="Mine",
        create_pr=True,
    )
    for revision in (theirs.oid, "refs/pr/1"):
        asked = request(hub, revision=revision, requester="mallory", options={})
        with pytest.raises(RequestError, match="is not in the history of the main branch"):
            resolved_ids(hub, tmp_path, asked)
        harden("refused")


@pytest.mark.harden("publishing")
@pytest.mark.parametrize("closing", [{"private": True}, {"gated": "manual"}, None], ids=str)
def test_a_source_that_is_closed_before_its_quant_is_published_is_not_published_openly(
    hub, tmp_path, closing
):
    source = hub.repos["model", "org/sample-2m"]
    source.readers.add("you")
    machine = steps(hub, tmp_path)
    asked = request(hub, targets_bpw=(6.0,))
    results: dict[str, str] = {}
    for step in STEPS:
        if step == "publish":
            if closing is None:
                del hub.repos[source.key]
            for name, value in (closing or {}).items():
                setattr(source, name, value)
        results[step] = run(machine, step, asked, results)
    repo = hub.repos["model", REPOS[1]]
    assert repo.private or repo.gated == "manual"


def test_the_texts_are_cut_into_tokens_once_for_all_steps_of_a_machine(hub, tmp_path):
    machine = steps(hub, tmp_path)
    asked = request(hub, targets_bpw=(6.0,))
    results: dict[str, str] = {}
    for step in STEPS[:3]:
        results[step] = run(machine, step, asked, results)
    folder = tmp_path / "jobs" / "job-1"
    for name in ("calibration.jsonl", "evaluation.jsonl"):
        (folder / name).write_text("")  # a step that reads it again finds it too short
    for step in STEPS[3:6]:
        results[step] = run(machine, step, asked, results)
    assert "original" in json.loads(results["evaluate"])


def test_every_step_may_be_done_on_another_machine_and_one_ladder_is_published(hub, tmp_path):
    results: dict[str, str] = {}
    reports: list[StepProgress] = []
    for number, step in enumerate(STEPS):
        machine = steps(hub, tmp_path / f"machine-{number % 2}")
        results[step] = run(machine, step, request(hub), results, reports)
        assert len(results[step]) < 1_000_000
        if number % 3 == 2:  # the machine's files are lost
            machine.release("job-1")
            assert "job-1" not in machine.local_jobs()
    published = results_from_text(results["publish"])
    assert [each.repo_id for each in published] == list(REPOS)
    for each in published:
        repo = hub.repos["model", each.repo_id]
        assert repo.at("main").sha == each.commit_sha
        folder = Path(
            snapshot_download(each.repo_id, cache_dir=tmp_path / "reader", endpoint=hub.url)
        )
        card = (folder / "README.md").read_text()
        assert all(f"{hub.url}/{other}" in card for other in REPOS if other != each.repo_id)
        plan = json.loads((folder / "dynquant" / "plan.json").read_text())
        assert plan["revision_sha"] == request(hub).revision
        for path in folder.rglob("*"):
            if path.is_file():
                content = path.read_bytes()
                assert str(tmp_path).encode() not in content, path.name
                assert TOKEN.encode() not in content, path.name
    assert {"measure", "encode", "evaluate"} <= {report.step for report in reports}
    assert all(0 <= report.fraction <= 1 for report in reports)

    # An equal request finds the repos and does nothing.
    before = {repo: dict(hub.repos["model", repo].branches) for repo in REPOS}
    again = steps(hub, tmp_path / "machine-3")
    found: dict[str, str] = {}
    for step in STEPS:
        found[step] = run(again, step, request(hub), found)
    assert results_from_text(found["publish"]) == published
    assert not (tmp_path / "machine-3" / "jobs" / "job-1" / "cost_table.json").exists()
    assert {repo: dict(hub.repos["model", repo].branches) for repo in REPOS} == before


def test_what_is_made_of_a_private_model_is_private_unless_public_was_asked_for(
    hub, tmp_path, monkeypatch
):
    hub.add("you/secret", MODEL, private=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    private = {}
    for name in ("kept", "shown"):
        machine = steps(hub, tmp_path / "machine")
        asked = request(
            hub,
            model="you/secret",
            revision=hub.repos["model", "you/secret"].at("main").sha,
            targets_bpw=(4.0,),
            destination=f"you/{name}",
            public=name == "shown",
        )
        results: dict[str, str] = {}
        for step in STEPS:
            results[step] = run(machine, step, asked, results)
        machine.release("job-1")
        private[name] = hub.repos["model", f"you/{name}"].private
    assert private == {"kept": True, "shown": False}


def test_a_cancelled_step_ends_before_it_is_done_and_leaves_no_process(hub, tmp_path):
    import psutil

    me = psutil.Process(os.getpid())
    others = set(me.children(recursive=True))  # of tests before this one
    runner = steps(hub, tmp_path)
    results: dict[str, str] = {}
    for step in ("resolve", "download"):
        results[step] = run(runner, step, request(hub), results)
    with pytest.raises(ChildCancelledError):
        run(runner, "measure", request(hub), results, [], lambda: True)
    assert not list(tmp_path.rglob("cost_table.json"))
    mine = set(me.children(recursive=True)) - others
    assert not any("dynquant.runner.worker" in " ".join(each.cmdline()) for each in mine)
    runner.release("job-1")
    assert runner.local_jobs() == set()


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        ({"targets_bpw": (1.0,)}, RequestError, "feasible|between|bits per weight"),
        ({"model": "org/none"}, RequestError, "no model 'org/none'"),
        ({"model": str(MODEL)}, RequestError, "cannot be the id of a model"),
        ({"destination": ""}, RequestError, "needs a destination"),
        ({"destination": "somebody-else"}, DestinationError, "cannot publish as"),
        ({"options": OPTIONS | {"menu": "7g64"}}, RequestError, "7g64"),
        ({"options": OPTIONS | {"calibration": "/none.txt"}}, RequestError, "no file"),
    ],
)
def test_what_cannot_work_is_refused_before_the_download(hub, tmp_path, overrides, error, says):
    with pytest.raises(error, match=says):
        run(steps(hub, tmp_path), "resolve", request(hub, **overrides), {})
    assert hub.asked(r"cdn.*safetensors") == [] or all(
        asked.num_bytes < 200_000 for asked in hub.asked(r"cdn.*safetensors")
    )


def test_a_job_that_does_not_fit_is_refused_before_the_download(hub, tmp_path):
    limit_bytes = 300 * 10**6  # enough to read the config
    with pytest.raises(NotEnoughMemoryError, match=r"takes about .* may use 300 MB") as caught:
        run(steps(hub, tmp_path, max_memory_bytes=limit_bytes), "resolve", request(hub), {})
    assert caught.value.needed_bytes > limit_bytes
    runner = steps(hub, tmp_path, free_bytes=lambda _folder: 1000)
    with pytest.raises(StorageFullError, match=r"this runner has 1\.00 kB free"):
        run(runner, "resolve", request(hub), {})


def test_an_error_of_the_child_comes_back_as_itself(hub, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("A few words only.")
    asked = request(hub, options=OPTIONS | {"evaluation": str(short)})
    runner = steps(hub, tmp_path)
    results: dict[str, str] = {}
    for step in ("resolve", "download"):
        results[step] = run(runner, step, asked, results)
    with pytest.raises(RequestError, match=r"has .* tokens, and at least") as caught:
        run(runner, "measure", asked, results)
    assert caught.value.reason == "unfit_text"
    assert not isinstance(caught.value, InfeasibleTargetError)


@pytest.mark.harden("other runners")
def test_a_repo_of_somebody_else_under_the_name_is_refused_before_any_work(hub, tmp_path):
    HfApi(endpoint=hub.url, token=TOKEN).create_repo(REPOS[0])
    hub.repos["model", REPOS[0]].commit({"README.md": b"# Mine"})
    with pytest.raises(DestinationError, match="did not publish"):
        run(steps(hub, tmp_path), "resolve", request(hub), {})


@pytest.mark.parametrize("path", [str(CALIBRATION), "docs/cli.md", "README.md"])
@pytest.mark.harden("web")
def test_a_job_may_not_name_files_of_the_runner_unless_its_operator_allows_it(hub, tmp_path, path):
    asked = request(hub, options=OPTIONS | {"calibration": path, "evaluation": "org/set"})
    with pytest.raises(RequestError) as caught:
        run(steps(hub, tmp_path, allow_files=False), "resolve", asked, {})
    assert "dataset" in str(caught.value)
