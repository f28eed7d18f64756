"""What a Space needs beside the code: the header of README.md, and its packages."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture(scope="module")
def header() -> dict[str, Any]:
    found = re.match(r"---\n(.*?)\n---\n", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert found is not None
    return yaml.safe_load(found[1])


def test_the_space_gets_the_gradio_that_is_locked_and_a_python_that_is_supported(header):
    lock = (ROOT / "requirements" / "run.lock").read_text("utf-8")
    assert (header["sdk"], f"gradio=={header['sdk_version']} " in lock) == ("gradio", True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert f">={header['python_version']}" >= project["requires-python"]
    assert (ROOT / header["app_file"]).is_file()


def test_visitors_sign_in_and_give_no_more_than_copying_takes(header):
    assert header["hf_oauth"] is True
    assert header["hf_oauth_scopes"] == ["contribute-repos"]


def test_the_hub_takes_the_header(header):
    assert len(header["short_description"]) <= 60
    assert {header["colorFrom"], header["colorTo"]} <= COLORS
    assert header["license"] == "mit"


def test_gradio_is_left_to_the_space(header):
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    assert not [line for line in lines if line.startswith("gradio")]
    assert any(line.startswith("huggingface-hub") for line in lines)
    assert (ROOT / "packages.txt").read_text("utf-8").split() == ["libopenblas0-pthread"]


def test_every_variable_of_a_space_is_documented():
    sources = [ROOT / "dynquant" / "web" / "settings.py", ROOT / "app.py"]
    read = {
        found for path in sources for found in re.findall(r'"(DYNQUANT_\w+)"', path.read_text())
    }
    read |= {"DYNQUANT_INBOX_REPO", "DYNQUANT_SPACE_SECRET", "HF_TOKEN", "GRADIO_MCP_SERVER"}
    text = (ROOT / "docs" / "space.md").read_text("utf-8")
    assert sorted(name for name in read if name not in text) == []
