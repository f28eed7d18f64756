"""How the web process starts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import app
from dynquant.errors import InvalidOptionError
from dynquant.hub.inbox import HubInbox
from dynquant.jobs.request import JobRequest
from dynquant.settings import Settings
from dynquant.web.settings import WebSettings
from local_hub.for_commands import hub_for_commands
from tests.command_line import MODEL, needs_shared
from tests.waiting import PATIENCE_SECS, wait_until

ROOT = Path(__file__).parents[2]

HEAVY = {"dbos", "mlx", "mlx_lm", "tokenizers", "transformers"}
"""Modules for converting only; benchmarks/responsiveness.py measures the start."""

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


@pytest.mark.harden("mishaps")
@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"DYNQUANT_OPERATORS": "ann"}, "DYNQUANT_OPERATORS must be accounts on the Hub"),
        ({"GRADIO_SERVER_PORT": "http"}, "GRADIO_SERVER_PORT must be a number"),
        ({"ALL_PROXY": "socks://127.0.0.1:1"}, "ALL_PROXY names a proxy of the kind 'socks'"),
        ({"HF_ENDPOINT": "huggingface.co"}, "HF_ENDPOINT must be the web address of a Hub"),
    ],
)
def test_an_environment_that_makes_no_sense_ends_it_in_a_sentence(tmp_path, variables, says):
    done = subprocess.run(
        [sys.executable, str(ROOT / "app.py")],
        env=os.environ | {"DYNQUANT_HOME": str(tmp_path)} | variables,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECS,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"Error: {says}")


@pytest.mark.harden("mishaps")
def test_an_address_that_is_taken_is_told_before_anything_is_started(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("DYNQUANT_HOME", str(home))
    monkeypatch.setattr(app, "_configure_logging", lambda *_: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("GRADIO_SERVER_PORT", str(taken.getsockname()[1]))
        said = io.StringIO()
        with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as ended:
            app.main()
    assert ended.value.code == 2
    assert "another program may do so already. Set GRADIO_SERVER_PORT" in said.getvalue()
    assert not home.exists()


@needs_shared
@pytest.mark.hub
def test_a_space_with_a_budget_has_jobs_of_the_hub_do_what_its_visitors_ask_for(tmp_path):
    with hub_for_commands(tmp_path) as hub, socket.create_server(("127.0.0.1", 0)) as free:
        hub.add_user("you", token="hf_you")
        hub.add("org/sample-2m", MODEL)
        hub.machines.room.clear()  # the Job need not run for this
        asked = JobRequest(model="org/sample-2m", targets_bpw=(4.5,), requester="ann")
        HubInbox("you/inbox", endpoint=hub.url, token="hf_you").send(asked)
        port = str(free.getsockname()[1])
        free.close()
        space = subprocess.Popen(
            [sys.executable, str(ROOT / "app.py")],
            env=os.environ
            | {
                "HF_ENDPOINT": hub.url,
                "HF_TOKEN": "hf_you",
                "SPACE_ID": "you/dynquant",
                "SPACE_HOST": "you-dynquant.hf.space",
                "GRADIO_SERVER_NAME": "127.0.0.1",
                "GRADIO_SERVER_PORT": port,
                "DYNQUANT_HOME": str(tmp_path / "space"),
                "DYNQUANT_INBOX_REPO": "you/inbox",
                "DYNQUANT_SPACE_SECRET": "0123456789abcdef",
                "DYNQUANT_HUB_JOBS_DOLLARS_PER_DAY": "5",
                "DYNQUANT_HUB_JOBS_SOURCE": "0.1.0",
            },
            stderr=subprocess.PIPE,
        )
        try:
            (job,) = wait_until(lambda: [*hub.machines.jobs.values()], "a Job")
            assert job.spec["environment"] == {
                "DYNQUANT_INBOX_REPO": "you/inbox",
                "DYNQUANT_SPACE_URL": "https://you-dynquant.hf.space",
            }
            assert set(job.secrets) == {"HF_TOKEN", "DYNQUANT_SPACE_SECRET"}
        finally:
            space.terminate()
            space.communicate(timeout=PATIENCE_SECS)


def test_a_space_that_no_runner_could_show_its_board_to_does_not_start(tmp_path):
    environment = {
        "SPACE_ID": "you/dynquant",
        "DYNQUANT_HOME": str(tmp_path),
        "DYNQUANT_INBOX_REPO": "you/inbox",
    }
    settings = Settings.from_environment(environment)
    with pytest.raises(InvalidOptionError, match="Set it under 'Settings'"):
        app.make_app(settings, WebSettings.from_environment(environment))
