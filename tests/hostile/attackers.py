"""Children that a model has taken over: scripts that run in place of a step, as confined as it is.

The job's folder has what an honest child would make, in `made`: `answers.json`, and a folder for
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
    # What the step would leave, computed once.
    made = job / 'made' / step
    if made.is_dir():
        shutil.copytree(made, here, dirs_exist_ok=True)

def answer():
    # What it would say; its runner ends the process then.
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
    """Have scripts run in place of steps of a job.

    Args:
        monkeypatch: Undoes it.
        scripts: Step → Python code after `PRELUDE`.
        arguments: What the code finds in `evil`.
    """
    confined = sandbox.confined

    def other(command: Sequence[str], **terms: Any) -> list[str]:
        *_, step, folder = command
        if step in scripts:
            code = PRELUDE + scripts[step]
            command = [sys.executable, "-c", code, step, folder, *map(str, arguments)]
        return confined(command, **terms)

    monkeypatch.setattr(worker_process, "confined", other)
