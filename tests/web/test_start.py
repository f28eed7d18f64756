"""How the web process starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import app
from dynquant.errors import InvalidOptionError
from dynquant.settings import Settings
from dynquant.web.settings import WebSettings
from tests.waiting import PATIENCE_SECS

ROOT = Path(__file__).parents[2]

HEAVY = {"dbos", "mlx", "mlx_lm", "tokenizers", "transformers"}
"""What converting needs, and the pages do not; benchmarks/responsiveness.py times the start."""

_START = """
import json, os, sys
from dynquant.settings import Settings
from dynquant.web.settings import WebSettings
import app
app.make_app(Settings.from_environment(os.environ), WebSettings.from_environment(os.environ))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_it_starts_without_what_only_converting_needs(tmp_path):
    environment = os.environ | {"DYNQUANT_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _START],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECS,
    )
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "gradio" in loaded
    assert loaded & HEAVY == set()
    assert str(tmp_path) not in done.stderr


def test_settings_that_make_no_sense_end_it_in_a_sentence(tmp_path):
    environment = os.environ | {"DYNQUANT_HOME": str(tmp_path), "DYNQUANT_OPERATORS": "a b"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "app.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECS,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: DYNQUANT_OPERATORS must be names of accounts")


def test_a_space_that_no_runner_could_show_its_board_to_does_not_start(tmp_path):
    environment = {
        "SPACE_ID": "you/dynquant",
        "DYNQUANT_HOME": str(tmp_path),
        "DYNQUANT_INBOX_REPO": "you/inbox",
    }
    settings = Settings.from_environment(environment)
    with pytest.raises(InvalidOptionError, match="Set it under 'Settings'"):
        app.make_app(settings, WebSettings.from_environment(environment))
