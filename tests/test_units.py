"""The files with which an operator installs a runner."""

from __future__ import annotations

import configparser
import os
import plistlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dynquant.settings import Settings

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "space_config"
UNIT = FOLDER / "dynquant-runner.service"
PLIST = FOLDER / "ai.dynquant.runner.plist"
WRAPPER = FOLDER / "with_env_file.sh"
EXAMPLE = FOLDER / "runner.env.example"


@pytest.fixture
def home(tmp_path) -> Path:
    """A home in which the commands of the README have run, but for those that start services."""
    for folder in ("Library/LaunchAgents", ".config"):
        (tmp_path / folder).mkdir(parents=True)
    blocks = re.findall(
        r"^```sh\n(.*?)^```", (FOLDER / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    commands = [
        line
        for block in blocks
        for line in block.splitlines()
        if line.startswith(("mkdir", "install", "sed"))
    ]
    assert len(commands) == 5
    subprocess.run(
        ["sh", "-euc", "\n".join(commands)],
        cwd=ROOT,
        env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        check=True,
    )
    return tmp_path


# Settings.


def examples() -> dict[str, str]:
    """Variable → value in the example, whether commented out or not."""
    return dict(re.findall(r"^#?([A-Z][A-Z_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE))


def changed_by(name: str, value: str, others: Mapping[str, str]) -> set[str]:
    """Fields of the settings that a variable changes."""
    before = Settings.from_environment(others)
    after = Settings.from_environment({**others, name: value})
    return {
        each.name
        for each in fields(Settings)
        if getattr(before, each.name) != getattr(after, each.name)
    }


def test_the_example_has_a_good_value_for_every_setting_and_names_nothing_else():
    ours = examples()
    assert "HF_TOKEN" in ours
    del ours["HF_TOKEN"]
    # The URL of a Space is refused without the secret.
    secret = {"DYNQUANT_SPACE_SECRET": "the secret of another one"}
    changed: set[str] = set()
    for name, value in ours.items():
        found = changed_by(name, value, secret)
        assert found, f"{name} sets nothing"
        changed |= found
    assert changed == {each.name for each in fields(Settings)}


def test_the_example_as_it_is_changes_nothing():
    given = re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE)
    assert given == [("HF_TOKEN", "")]


# The wrapper.


def run_wrapped(
    path: Path, *command: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", WRAPPER, path, *command],
        env=environment or {"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )


def write_settings(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_the_wrapper_sets_what_the_file_says_and_runs_none_of_it(tmp_path):
    values = {
        "HF_TOKEN": "hf_a'b\"c",
        "DYNQUANT_DATABASE_URL": "postgresql://u:p%40$HOME`id`$(id)&;|#=\\ x@h/d",
        "EMPTY": "",
    }
    text = "# comment=1\n\n" + "\n".join(f"{name}={value}" for name, value in values.items())
    path = write_settings(tmp_path / "runner.env", text)
    code = (
        "import os, sys; assert sys.argv[1:] == ['a b', '']; "
        f"print([os.environ[name] for name in {list(values)}])"
    )
    done = run_wrapped(path, sys.executable, "-c", code, "a b", "")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{list(values.values())}\n"


def test_the_wrapper_becomes_the_program_so_that_signals_reach_it(tmp_path):
    path = write_settings(tmp_path / "runner.env", "A=1\n")
    code = "import os; print(os.getppid())"
    assert int(run_wrapped(path, sys.executable, "-c", code).stdout) == os.getpid()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o644])
def test_the_wrapper_refuses_a_file_that_others_may_read_or_write(tmp_path, mode):
    path = write_settings(tmp_path / "runner.env", "HF_TOKEN=canary\n", mode)
    done = run_wrapped(path, "echo", "started")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"chmod 600 '{path}'" in done.stderr
    assert "canary" not in done.stderr


@pytest.mark.parametrize(
    "line", ["canary", "1A=canary", "A B=canary", "=canary", "export A=canary"]
)
def test_the_wrapper_refuses_a_line_that_is_no_setting_without_showing_it(tmp_path, line):
    path = write_settings(tmp_path / "runner.env", f"A=1\n{line}\n")
    done = run_wrapped(path, "echo", "started")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"runner: line 2 of {path} is not NAME=value.\n"


def test_the_wrapper_says_where_settings_come_from_if_there_are_none(tmp_path):
    done = run_wrapped(tmp_path / "runner.env", "echo", "started")
    assert (done.returncode, done.stdout) == (2, "")
    assert "runner.env.example" in done.stderr


def test_settings_that_were_just_installed_are_taken(home):
    path = home / ".config" / "dynquant" / "runner.env"
    assert path.read_text() == EXAMPLE.read_text()
    assert run_wrapped(path, "echo", "started").stdout == "started\n"


# launchd.


def agent(home: Path) -> dict[str, Any]:
    path = home / "Library" / "LaunchAgents" / "ai.dynquant.runner.plist"
    content: dict[str, Any] = plistlib.loads(path.read_bytes())
    return content


def test_the_agent_starts_the_runner_of_this_folder_with_the_settings(home):
    content = agent(home)
    assert content["Label"] == "ai.dynquant.runner"
    shell, wrapper, settings, *command = content["ProgramArguments"]
    assert (shell, wrapper) == ("/bin/sh", str(WRAPPER))
    assert settings == f"{home}/.config/dynquant/runner.env"
    assert command == [f"{ROOT}/.venv/bin/dynquant", "runner"]
    assert "@" not in str(content)


def test_the_agent_comes_back_after_a_crash_but_not_after_a_stop(home):
    content = agent(home)
    assert content["RunAtLoad"] is True
    assert content["KeepAlive"] == {"SuccessfulExit": False}
    assert content["ThrottleInterval"] >= 10
    assert content["ExitTimeOut"] > 10, "the runner takes 10 s to give its jobs back"
    assert content["ProcessType"] == "Interactive"
    assert content["Umask"] == 0o077


def test_the_agent_has_no_secret_and_logs_where_macos_looks(home):
    content = agent(home)
    assert set(content["EnvironmentVariables"]) == {"PATH"}
    assert content["StandardErrorPath"] == f"{home}/Library/Logs/dynquant-runner.log"
    assert content["StandardOutPath"] == content["StandardErrorPath"]


# systemd.


def unit(home: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # names keep their case
    parser.read(home / ".config" / "systemd" / "user" / UNIT.name)
    return parser


def test_the_unit_starts_the_runner_of_this_folder_and_is_stopped_gently(home):
    service = unit(home)["Service"]
    assert service["ExecStart"] == f"{ROOT}/.venv/bin/dynquant runner"
    assert service["EnvironmentFile"] == "%h/.config/dynquant/runner.env"
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "2"
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) > 10, "the runner takes 10 s to give its jobs back"
    assert service["NoNewPrivileges"] == "yes"
    assert service["ProtectSystem"] == "full"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd")
def test_systemd_itself_finds_nothing_wrong_with_the_unit(home):
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", home / ".config" / "systemd" / "user" / UNIT.name],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (0, "")
