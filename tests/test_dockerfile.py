"""The Dockerfile, read as a builder reads it: what each stage installs, copies and starts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.supply_chain import locked

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def stages() -> dict[str, list[tuple[str, str]]]:
    """Name → its steps with those of the stage that it builds on, as (instruction, arguments)."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    found: dict[str, list[tuple[str, str]]] = {"": []}
    name = ""
    for line in lines.replace("\\\n", " ").splitlines():
        instruction, _, arguments = line.partition(" ")
        if instruction == "FROM":
            base, _, name = arguments.partition(" AS ")
            found[name] = list(found.get(base, []))
        elif instruction:
            found[name].append((instruction, " ".join(arguments.split())))
    return found


STAGES = stages()


def last(stage: str, instruction: str) -> str:
    return [arguments for each, arguments in STAGES[stage] if each == instruction][-1]


def test_a_plain_build_is_the_space_and_a_named_one_the_runner():
    assert list(STAGES) == ["", "runner", "space"]
    assert json.loads(last("space", "CMD")) == ["python", "app.py"]
    assert json.loads(last("runner", "CMD")) == ["python", "-m", "dynquant", "runner"]
    assert ("ENV", "SYSTEM=spaces") in STAGES["space"]
    assert all("SYSTEM" not in arguments for _, arguments in STAGES["runner"])


@pytest.mark.parametrize("stage", ["runner", "space"])
def test_nothing_runs_as_root_and_no_secret_is_part_of_an_image(stage):
    instructions = [each for each, _ in STAGES[stage]]
    assert last(stage, "USER") == "user"
    assert "RUN" not in instructions[instructions.index("USER") :]
    assert not re.search(r"token|secret|password", TEXT, re.IGNORECASE)


def test_a_builder_is_given_the_lock_by_name_and_otherwise_takes_the_one_of_a_space():
    assert ("ARG", "LOCK=requirements.txt") in STAGES[""]
    assert ("COPY", "${LOCK} /tmp/requirements.txt") in STAGES["runner"]


def test_each_image_has_one_build_of_mlx():
    for lock, build in (("run.lock", "mlx-cpu"), ("cuda.lock", "mlx-cuda-13")):
        names = {each.name for each in locked((ROOT / "requirements" / lock).read_text())}
        assert names & {"mlx-cpu", "mlx-cuda-13"} == {build}
        assert {"mlx-lm", "mlx-vlm", "huggingface-hub", "dbos"} <= names


def test_the_locks_for_cpu_and_gpu_differ_in_that_build_alone():
    def versions(lock: str) -> dict[str, str]:
        text = (ROOT / "requirements" / lock).read_text(encoding="utf-8")
        return {each.name: each.version for each in locked(text)}

    cpu, cuda = versions("run.lock"), versions("cuda.lock")
    assert {name: cuda[name] for name in cuda.keys() & cpu.keys()} == {
        name: version for name, version in cpu.items() if name != "mlx-cpu"
    }
    assert all(name.startswith(("mlx-cuda", "nvidia-")) for name in cuda.keys() - cpu.keys())


def test_what_the_runners_image_starts_is_a_command_of_the_program():
    python, *words = json.loads(last("runner", "CMD"))
    assert python == "python"
    done = subprocess.run(
        [sys.executable, *words, "--help"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0
    assert "--until-idle" in done.stdout
