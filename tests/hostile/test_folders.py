"""Hostile models in a runner's child: refused with a reason, in bounded time and memory."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from dynquant.model.source import ModelSource
from dynquant.quant.options import RecipeOptions
from dynquant.runner.spec import JobSpec
from tests.command_line import once
from tests.hardening import long_form
from tests.hostile.attempt import MAX_PEAK_BYTES, Ending, compute
from tests.hostile.cases import CASES, LONG, SECRET
from tests.hostile.damage import CHATS, STORIES, make_sound

pytestmark = pytest.mark.harden("hostile models")

READING_CPU_SECS = 3
MACHINE = (str(Path(__file__).parents[2]), "site-packages", "/home", "/root", "/Users", SECRET)


def make_job(folder: Path, model: Path) -> None:
    """The spec that a runner writes for its child."""
    (folder / "work").mkdir(parents=True)
    options = RecipeOptions.model_validate(
        {
            "menu": "4g32,8g32",
            "encoder": "minmax",
            "calibration_tokens": 320,
            "evaluation_tokens": 64,
            "calibration": "chats",
            "evaluation": "stories",
        }
    )
    source = ModelSource(
        name="org/model",
        folder=model,
        is_repo=True,
        revision_sha="0" * 40,
        license_fields={},
        gated_fields={},
    )
    spec = JobSpec(
        source=source,
        targets_bpw=(6.0,),
        options=options,
        max_reading_cpu_secs=READING_CPU_SECS,
    )
    (folder / "spec.json").write_text(spec.to_json())
    for name, lines in (("calibration", CHATS), ("evaluation", STORIES)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="session")
def sound(tmp_path_factory) -> Path:
    return once(tmp_path_factory, "sound", lambda folder: make_sound(folder / "model")) / "model"


@pytest.fixture
def place(tmp_path, sound) -> Path:
    """A folder with `model`, `job`, and beside them a secret."""
    shutil.copytree(sound, tmp_path / "model")
    make_job(tmp_path / "job", tmp_path / "model")
    (tmp_path / "secret").write_text(SECRET)
    return tmp_path


def tried(place: Path, step: str) -> Ending:
    """How the step ended: within its limits, and without writing outside of the job's folder."""
    before = outside(place)
    ending = compute("resolve", place / "job")
    if step == "measure" and ending.reason is None:
        ending = compute("measure", place / "job")
    assert ending.peak_bytes < MAX_PEAK_BYTES
    assert outside(place) == before
    return ending


def outside(place: Path) -> dict[str, object]:
    """Names, sizes and times of all other files; not contents, as some files have no end."""
    found: dict[str, object] = {}
    for path in sorted(place.rglob("*")):
        if place / "job" not in (path, *path.parents):
            about = path.lstat()
            found[str(path)] = (about.st_mode, about.st_size, about.st_mtime_ns)
    return found


def assert_a_sentence(sentence: str) -> None:
    assert sentence.endswith(".")
    assert len(sentence) < 800
    assert all(each.isprintable() for each in sentence)
    assert not any(each in sentence for each in MACHINE), sentence


def test_the_sound_model_that_all_others_are_made_of_is_taken(place):
    assert tried(place, "measure").reason is None


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[long_form] if name in LONG else []) for name in CASES],
)
def test_a_hostile_model_is_refused_by_name_or_does_no_harm(name, place, harden):
    case = CASES[name]
    case.build(place / "model")
    ending = tried(place, case.step)
    # On a slow processor the limit of CPU time may come before the sentence of a long case.
    comes_first = ending.code == -signal.SIGXCPU and name in LONG
    assert ending.reason == case.reason or comes_first, ending
    if case.reason is None:
        harden("handled")
        return
    if ending.code != -signal.SIGXCPU:
        assert_a_sentence(ending.said["sentence"])
        assert case.says in ending.said["sentence"]
    harden("refused")
