"""The files of a Space beside the code: the header of README.md, and its packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture(scope="module")
def header() -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1])


def test_the_space_is_made_by_the_dockerfile_and_listens_where_it_says(header):
    assert (header["sdk"], header["app_port"]) == ("docker", 7860)
    python = re.search(r"^FROM python:([\d.]+)-", DOCKERFILE, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert python is not None
    assert f">={python[1]}" >= project["requires-python"]
    assert 'CMD ["python", "app.py"]' in DOCKERFILE


def test_gradio_knows_the_image_for_a_space_and_signs_nobody_in_as_its_owner():
    assert re.search(r"^ENV .*\bSYSTEM=spaces$", DOCKERFILE, re.MULTILINE)


def test_the_image_holds_what_runs_and_no_secret_of_a_working_copy():
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    locks = ["requirements.txt", "requirements/run.lock", "requirements/cuda.lock"]
    assert kept == ["app.py", "dynquant", *locks, "space_config"]
    assert all((ROOT / name).exists() for name in kept)


def test_visitors_sign_in_and_give_no_more_than_copying_takes(header):
    assert header["hf_oauth"] is True
    assert header["hf_oauth_scopes"] == ["contribute-repos"]


def test_the_hub_takes_the_header(header):
    assert len(header["short_description"]) <= 60
    assert {header["colorFrom"], header["colorTo"]} <= COLORS
    assert header["license"] == "mit"


def test_every_variable_of_a_space_is_documented():
    sources = [ROOT / "dynquant" / "web" / "settings.py", ROOT / "app.py"]
    read = {
        found for path in sources for found in re.findall(r'"(DYNQUANT_\w+)"', path.read_text())
    }
    read |= {"DYNQUANT_INBOX_REPO", "DYNQUANT_SPACE_SECRET", "HF_TOKEN", "GRADIO_MCP_SERVER"}
    text = (ROOT / "docs" / "space.md").read_text("utf-8")
    assert sorted(name for name in read if name not in text) == []
