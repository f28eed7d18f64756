"""Workflows have the fewest rights, and run pinned code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.harden("supply chain")

FOLDER = Path(__file__).parents[1] / ".github" / "workflows"
WORKFLOWS = sorted(path for path in FOLDER.iterdir() if path.suffix in {".yml", ".yaml"})
PINNED = re.compile(r"\s+(?:- )?uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
FETCHES = "actions/download-artifact@"

of_each = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def jobs_of(path: Path) -> dict[str, dict[str, Any]]:
    return yaml.safe_load(path.read_text("utf-8"))["jobs"]


def steps_of(path: Path) -> list[dict[str, Any]]:
    return [step for job in jobs_of(path).values() for step in job["steps"]]


def test_there_are_workflows():
    assert {path.stem for path in WORKFLOWS} >= {"ci", "release"}


@of_each
def test_a_workflow_has_no_rights_and_each_job_names_its_own(path):
    assert yaml.safe_load(path.read_text("utf-8"))["permissions"] == {}
    for name, job in jobs_of(path).items():
        assert set(job["permissions"]) == {"contents"}, name
        assert job["permissions"]["contents"] in {"read", "write"}, name


@of_each
def test_every_action_is_pinned_to_a_commit_and_names_its_release(path):
    lines = [line for line in path.read_text("utf-8").splitlines() if "uses:" in line]
    assert len(lines) == sum("uses" in step for step in steps_of(path)) > 0
    assert [line for line in lines if not PINNED.fullmatch(line)] == []


@of_each
def test_no_checkout_leaves_its_token_in_the_working_copy(path):
    checkouts = [
        step for step in steps_of(path) if step.get("uses", "").startswith("actions/checkout@")
    ]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


@of_each
def test_a_job_that_may_write_runs_no_code_of_the_repository(path):
    for name, job in jobs_of(path).items():
        if job["permissions"]["contents"] != "write":
            assert "github.token" not in str(job), name
            continue
        fetches, *others = job["steps"]
        assert fetches["uses"].startswith(FETCHES), name
        assert all(step.get("run", "").startswith("gh release upload ") for step in others), name


@of_each
def test_no_text_of_an_event_becomes_a_part_of_a_script(path):
    assert [step["run"] for step in steps_of(path) if "${{" in step.get("run", "")] == []
