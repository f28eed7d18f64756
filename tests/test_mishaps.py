"""Environments in which a command cannot work as usual: real processes, and a sentence for each."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from local_hub import LocalHub
from tests.command_line import HELD_OUT, MODEL, Finished, environment, needs_shared

pytestmark = pytest.mark.harden("mishaps")

DYNQUANT = f"{sys.executable} -m dynquant"
REFUSED = f"{DYNQUANT} card ./missing"


def start(
    *words: str | Path,
    env: Mapping[str, str | None] | None = None,
    folder: Path | None = None,
    preexec: Callable[[], None] | None = None,
) -> Finished:
    """A process with variables of its own; None removes one."""
    variables = {**environment(), **(env or {})}
    done = subprocess.run(
        list(map(str, words)),
        env={name: value for name, value in variables.items() if value is not None},
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        preexec_fn=preexec,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def shell(script: str) -> Finished:
    """`script` in bash; the exit code is that of its last command."""
    return start("bash", "-c", script)


def assert_a_sentence(finished: Finished, code: int, *says: str) -> None:
    assert finished.code == code, finished
    (line,) = finished.err.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith(".")
    for each in says:
        assert each in line


def test_a_reader_that_stops_reading_ends_the_command_in_silence():
    for words in ("--version", "--help"):
        done = shell(f"{DYNQUANT} {words} | true; exit ${{PIPESTATUS[0]}}")
        assert (done.code, done.err) == (141, ""), words
    assert shell(f"{REFUSED} 2> >(true)").code == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written_is_told():
    assert_a_sentence(shell(f"{DYNQUANT} --version > /dev/full"), 3, "disk is full")
    assert shell(f"{REFUSED} 2> /dev/full").code == 2


def test_closed_streams_make_no_difference():
    assert shell(f"{DYNQUANT} --version >&-") == Finished(0, "", "")
    assert shell(f"{REFUSED} 2>&-").code == 2


_DESCRIPTORS = """
import os, subprocess, sys
from dynquant.cli.starting import make_ready
make_ready()
child = subprocess.run([sys.executable, "-c", "import os; [os.fstat(n) for n in range(3)]"])
with open(sys.argv[1], "w") as stream:
    stream.write(f"{stream.fileno() > 2} {child.returncode}")
"""


def test_no_file_takes_the_place_of_a_closed_stream_here_or_in_a_child(tmp_path):
    # MLX takes a file with the number 0 for one that could not be opened.
    said = tmp_path / "said"
    done = shell(f"{sys.executable} -c '{_DESCRIPTORS}' {said} <&- >&- 2>&-")
    assert done.code == 0
    assert said.read_text() == "True 0"


_INTERRUPTED = """
import importlib, os, signal, sys
module, name = sys.argv[1:]
def interrupt(*_args, **_options):
    os.kill(os.getpid(), signal.SIGINT)
setattr(importlib.import_module(module), name, interrupt)
sys.argv = ["dynquant", "card", "."]
from dynquant.cli import main
main()
"""


def _take_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background takes none


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("dynquant.cli.starting", "_agree_on_temporary_folder"),  # before a command is imported
        ("dynquant.report.outputs", "finished_folders"),  # in the middle of one
    ],
)
def test_ctrl_c_is_a_line_and_130(module, name):
    done = start(
        sys.executable, "-c", _INTERRUPTED, module, name,
        preexec=_take_interrupts,
    )  # fmt: skip
    assert done == Finished(130, "", "Interrupted.\n")


def test_a_folder_that_was_deleted_is_told(tmp_path):
    gone = tmp_path / "gone"
    done = shell(f"mkdir {gone} && cd {gone} && rmdir {gone} && {REFUSED}")
    assert_a_sentence(done, 2, "folder that this command was started in")


def test_a_name_that_is_not_in_utf8_is_told_before_any_work():
    done = start("bash", "-c", f"{DYNQUANT} card $'caf\\xe9'")
    assert_a_sentence(done, 2, "caf?", "UTF-8")


_NAMELESS = """
import pwd, runpy, sys
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
sys.argv = ["dynquant", *sys.argv[1:]]
runpy.run_module("dynquant", run_name="__main__")
"""
_NO_NAME = dict.fromkeys(("USER", "LOGNAME", "USERNAME", "LNAME"))


@needs_shared
@pytest.mark.hub
def test_a_user_id_without_an_entry_may_submit(tmp_path):
    with LocalHub() as hub:
        hub.add("org/sample", MODEL)
        home = {"HOME": str(tmp_path), "DYNQUANT_HOME": str(tmp_path / "dynquant")}
        done = start(
            sys.executable, "-c", _NAMELESS, "submit", "org/sample", "--bpw=5", "--to=me", "--json",
            env={**_NO_NAME, **home, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")},
        )  # fmt: skip
    assert done.check().json["job"]["request"]["requester"] == f"local:uid-{os.getuid()}"


def test_without_any_home_the_variable_to_set_is_named(tmp_path):
    homeless = {**_NO_NAME, "HOME": None, "DYNQUANT_HOME": None}
    done = start(sys.executable, "-c", _NAMELESS, "jobs", "list", env=homeless, folder=tmp_path)
    assert_a_sentence(done, 2, "DYNQUANT_HOME must be set", "HOME is not set")
    assert list(tmp_path.iterdir()) == []  # huggingface_hub would make a folder named '~'


def _without_privileges() -> None:
    """Take from root what lets it read and write everything."""
    libc = ctypes.CDLL(None)
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


_CALLS = """
import json, sys
from tests.command_line import call
for words in json.loads(sys.argv[1]):
    done = call(*words)
    print(json.dumps([done.code, done.out, done.err]))
"""


@needs_shared
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="capabilities are Linux's")
def test_what_may_not_be_read_or_written_is_told(tmp_path):
    """All in one process: most of its time goes into importing MLX."""
    texts = tmp_path / "text.txt"
    shutil.copyfile(HELD_OUT, texts)
    closed, sealed = tmp_path / "closed", tmp_path / "sealed"
    for folder in (closed, sealed):
        folder.mkdir()
    for path, mode in ((texts, 0), (closed, 0), (sealed, 0o500)):
        path.chmod(mode)
    out = f"--out={tmp_path / 'out'}"
    commands = {
        ("quantize", MODEL, "--bpw=4", out, f"--calibration={texts}"): "text.txt",
        ("quantize", MODEL, "--bpw=4", out, f"--cost-table={texts}"): "is not readable",
        ("quantize", MODEL, "--bpw=4", f"--out={sealed / 'x'}"): "cannot be written",
        ("measure", MODEL, f"--out={sealed / 'table.json'}"): "cannot be written",
        ("plan", closed, "--bpw=4"): "closed",
        ("plan", closed / "model", "--bpw=4"): "There is no folder",
        ("watch", "--once", f"--config={texts}"): "is not readable",
        ("publish", closed, "me"): "is not readable",
        ("evaluate", closed, f"--reference={MODEL}"): "is not readable",
        ("jobs", "list"): "DYNQUANT_HOME",
        ("runner",): "DYNQUANT_HOME",
    }
    done = start(
        sys.executable, "-c", _CALLS, json.dumps([list(map(str, words)) for words in commands]),
        env={"DYNQUANT_HOME": str(sealed / "home")},
        folder=Path(__file__).parents[1],
        preexec=_without_privileges,
    ).check()  # fmt: skip
    lines = done.out.splitlines()
    assert len(lines) == len(commands)
    for line, (words, says) in zip(lines, commands.items(), strict=True):
        code, printed, told = json.loads(line)
        assert (code, printed) == (2, ""), (words, told)
        if says == "is not readable":  # in typer's own words, in a box as wide as it likes
            assert says in " ".join(told.replace("│", " ").split())
        else:
            assert_a_sentence(Finished(code, printed, told), 2, says)
    assert not (tmp_path / "out").exists()
