"""Children under a model's control: scripts that run in place of a step, in the same sandbox.

The job's folder has the results of an honest child in `made`: `answers.json`, and a folder for
each step that leaves files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from dynquant import sandbox
from dynquant.runner import worker_process

__all__ = ["PRELUDE", "take_over"]

PRELUDE = """
import json, os, shutil, sys, time
from pathlib import Path
step, job, evil = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
here = Path.cwd()  # where it may write

def leave():
    # The files of an honest step, computed once.
    made = job / 'made' / step
    if made.is_dir():
        shutil.copytree(made, here, dirs_exist_ok=True)

def answer():
    # The answer of an honest child; then the runner ends the process.
    say({'result': json.loads((job / 'made' / 'answers.json').read_text()).get(step)})

def honestly():
    leave()
    answer()

def say(line):
    print(line if isinstance(line, str) else json.dumps(line), flush=True)

def attempt(act):
    try:
        act()
    except OSError:
        return False
    return True
"""


def take_over(
    monkeypatch: pytest.MonkeyPatch, scripts: Mapping[str, str], *arguments: object
) -> None:
    """Run scripts in place of steps of a job.

    Args:
        monkeypatch: Restores the steps afterwards.
        scripts: Step → Python code after `PRELUDE`.
        arguments: The value of `evil` in the code.
    """
    confined = sandbox.confined

    def other(command: Sequence[str], **terms: Any) -> list[str]:
        *_, step, folder = command
        if step in scripts:
            code = PRELUDE + scripts[step]
            command = [sys.executable, "-c", code, step, folder, *map(str, arguments)]
        return confined(command, **terms)

    monkeypatch.setattr(worker_process, "confined", other)
