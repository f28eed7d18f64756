"""Hostile models as jobs of one real runner: it keeps running, and publishes the valid models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from dynquant.jobs.job import Job, JobState
from dynquant.jobs.request import JobRequest
from dynquant.quant.options import RecipeOptions
from dynquant.quant.recipe import RECIPE_VERSION
from local_hub import LocalHub
from tests.command_line import needs_shared
from tests.hardening import long_form
from tests.hostile.cases import CASES
from tests.hostile.damage import CHATS, make_sound
from tests.service.conftest import OPTIONS, TOKEN, Field

pytestmark = [
    pytest.mark.harden("hostile models"),
    pytest.mark.hub,
    pytest.mark.slow,
    long_form,
    needs_shared,
]

CARD = """---
license: <script>alert(1)</script>
license_name: "[click](javascript:alert(1))"
license_link: javascript:alert(1)
tags: ["<img src=x onerror=alert(1)>", "{{ 7 * 7 }}"]
extra_gated_prompt: "<script>alert(2)</script>"
---
# <script>alert(3)</script>
"""
PUBLISHED = (
    "weights too small for a float",
    "code of its own by auto_map",
    "a tokenizer that brings code",
    "a template that reaches for the system",
    "a template that refuses everything",
)
REFUSED = (
    "tensors that overlap",
    "an archive behind the tensors",
    "one name twice in a header",
    "a name that turns the line around",
    "an index that leads out of the folder",
    "a weight that is NaN",
    "an array without elements",
    "num_hidden_layers of 10000000",
    "hidden_size of nan",
    "code of its own",
    "an architecture of escapes",
    "tokens without a row",
)
"""One case of each kind; `test_folders.py` has all of them."""


@pytest.fixture
def field(tmp_path, monkeypatch) -> Iterator[Field]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with LocalHub() as hub:
        hub.add_user("you", token=TOKEN)
        field = Field(tmp_path, hub, f"sqlite:///{tmp_path / 'jobs.sqlite'}")
        yield field
        field.close()


def submit(field: Field, name: str, folder: Path) -> Job:
    repo = field.hub.add(f"eve/model-{len(field.hub.repos)}", folder)
    own = {"menu": "4g32,8g32", "calibration": str(field.folder / "chats.jsonl")}
    options: dict[str, Any] = OPTIONS | own
    request = JobRequest(
        model=repo.id,
        targets_bpw=(6.0,),
        destination="you",
        requester=name[:20],
        options=RecipeOptions.model_validate(options),
    )
    return field.board.submit(
        request,
        revision_sha=repo.branches["main"],
        source_is_private=False,
        recipe_version=RECIPE_VERSION,
    )


def test_a_runner_refuses_them_all_by_name_and_publishes_the_sound_ones(field, tmp_path, harden):
    make_sound(tmp_path / "sound")
    (tmp_path / "sound" / "README.md").write_text(CARD)
    chats = [json.dumps({"messages": chat}) for chat in CHATS]
    (tmp_path / "chats.jsonl").write_text("\n".join(chats))
    jobs = {}
    for number, name in enumerate((*PUBLISHED, *REFUSED)):
        folder = tmp_path / "models" / str(number)
        shutil.copytree(tmp_path / "sound", folder)
        CASES[name].build(folder)
        jobs[name] = submit(field, name, folder)
    runner = field.start()
    over = {name: field.over(job) for name, job in jobs.items()}
    assert runner.poll() is None
    lost = {
        name: f"{job.state} {job.reason_code}: {job.sentence}"
        for name, job in over.items()
        if name in REFUSED
        and (job.reason_code != CASES[name].reason or not job.sentence.isprintable())
    }
    published = [name for name in PUBLISHED if over[name].state == JobState.PUBLISHED]
    harden("refused", len(REFUSED) - len(lost))
    harden("published", len(published))
    harden("lost", len(lost) + len(PUBLISHED) - len(published))
    assert not lost
    assert published == [*PUBLISHED], [over[name].sentence for name in PUBLISHED]
    made = [repo for key, repo in field.hub.repos.items() if repo.id.startswith("you/")]
    assert len(made) == len(PUBLISHED)
    for repo in made:
        files = repo.commits[repo.branches["main"]].files
        assert not [path for path in files if path.endswith(".py")]
        _, metadata, body = files["README.md"].read().split(b"---\n", 2)
        assert b"<" not in metadata
        assert b"license_link" not in metadata
        assert b"<script" not in body
        assert b"](javascript" not in body
    assert not list(tmp_path.rglob("ran"))
