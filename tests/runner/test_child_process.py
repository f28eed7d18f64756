from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dynquant.runner.child_process import (
    ChildCancelledError,
    ChildMemoryError,
    ChildOutputError,
    ChildSilentError,
    run_child,
)
from dynquant.sandbox import clean_environment
from tests.waiting import wait_until


def run(code: str, home: Path, **options):
    lines: list[str] = []
    rc, errors = run_child(
        [sys.executable, "-c", code],
        environment=clean_environment(home, {}),
        folder=home,
        on_line=lines.append,
        is_cancelled=options.pop("is_cancelled", lambda: False),
        **options,
    )
    return rc, lines, errors


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_lines_errors_and_exit_code_come_back(tmp_path):
    code = "import sys; print('a'); print('b'); print('oh', file=sys.stderr); sys.exit(3)"
    rc, lines, errors = run(code, tmp_path)
    assert (rc, lines, errors.strip()) == (3, ["a", "b"], "oh")


def test_no_token_and_no_home_of_ours_reaches_a_child(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("DYNQUANT_DATABASE_URL", "postgresql://u:hf_canary@h/d")
    code = "import os; print(sorted(os.environ.items()))"
    _, lines, _ = run(code, tmp_path)
    assert "hf_canary" not in lines[0]
    assert f"('HOME', '{tmp_path}')" in lines[0]


def test_a_cancelled_child_is_gone_with_all_that_it_started(tmp_path):
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        "print(p.pid, flush=True); time.sleep(3600)"
    )
    lines: list[str] = []
    with pytest.raises(ChildCancelledError):
        run_child(
            [sys.executable, "-c", code],
            environment=clean_environment(tmp_path, {}),
            folder=tmp_path,
            on_line=lines.append,
            is_cancelled=lambda: bool(lines),
        )
    wait_until(lambda: not is_alive(int(lines[0])))


def test_a_child_that_takes_too_much_memory_is_killed_and_says_how_much(tmp_path):
    code = (
        "import time; x = bytearray(300_000_000); x[::4096] = b'a' * len(x[::4096]);"
        " time.sleep(3600)"
    )
    with pytest.raises(ChildMemoryError) as caught:
        run(code, tmp_path, max_memory_bytes=100_000_000)
    assert caught.value.num_bytes > 100_000_000


def test_what_a_child_says_before_it_crashes_is_kept(tmp_path):
    code = "import os; print('said', flush=True); os.kill(os.getpid(), 9)"
    rc, lines, _ = run(code, tmp_path)
    assert (rc, lines) == (-signal.SIGKILL, ["said"])


@pytest.mark.harden("sandboxed compute")
def test_a_child_that_says_nothing_for_too_long_is_killed(tmp_path):
    with pytest.raises(ChildSilentError):
        run("import time; time.sleep(3600)", tmp_path, max_silent_secs=0.5)


def test_a_child_that_never_ends_its_line_is_killed_before_it_fills_our_memory(tmp_path):
    with pytest.raises(ChildOutputError):
        run("while True: print('x' * 1_000_000, end='')", tmp_path)


@pytest.mark.harden("child and runner")
def test_a_child_that_floods_its_output_waits_until_it_is_read(tmp_path, harden):
    """The lines of a flooding child once filled the memory of its runner."""
    num_lines = 20_000
    read: list[int] = []
    code = (
        "count = open('written', 'wb', buffering=0)\n"
        f"for _ in range({num_lines}):\n"
        "    print('x' * 4_000, flush=True); count.write(b'.')"
    )

    def num_written() -> int:
        return (tmp_path / "written").stat().st_size

    def on_line(_line: str) -> None:
        if not read:  # until the child is blocked
            before = -1
            while (now := num_written()) not in {before, num_lines}:
                before = now
                time.sleep(0.3)
        read.append(num_written() - len(read))

    with pytest.raises(ChildCancelledError):
        run_child(
            [sys.executable, "-c", code],
            environment=clean_environment(tmp_path, {}),
            folder=tmp_path,
            on_line=on_line,
            is_cancelled=lambda: len(read) > 50,
        )
    assert max(read) < 1_000  # lines ahead: the content of pipes and one read, at most 4 MB
    harden("refused")


@pytest.mark.harden("child and runner")
@pytest.mark.parametrize("ends", [True, False])
def test_a_child_that_closes_its_output_is_still_watched(tmp_path, ends, harden):
    """The runner once waited for it without end, and it could not be cancelled."""
    code = (
        "import os, pathlib, sys, time\n"
        "os.close(1); os.close(2); pathlib.Path('closed').touch()\n"
        f"time.sleep({0 if ends else 600}); os._exit(3)"
    )
    options = {"is_cancelled": lambda: not ends and (tmp_path / "closed").exists()}
    if ends:
        assert run(code, tmp_path, **options)[0] == 3
    else:
        with pytest.raises(ChildCancelledError):
            run(code, tmp_path, **options)
    harden("handled")


@pytest.mark.harden("child and runner")
def test_who_keeps_the_output_of_a_child_that_has_ended_holds_nobody(tmp_path, harden):
    """On systems that do not kill detached processes, as macOS, the runner once waited for it."""
    away = (
        "import os, sys, time\n"
        "os.setsid(); open('pid', 'w').write(str(os.getpid())); os.rename('pid', 'ran')\n"
        "while True: time.sleep(0.01); print('x' * 1_000)"
    )
    code = (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-c', {away!r}])\n"
        "while not os.path.exists('ran'): time.sleep(0.01)\n"
        "print('said', flush=True)"
    )
    try:
        rc, lines, _ = run(code, tmp_path)
        assert rc == 0
        assert "said" in lines
    finally:
        psutil.Process(int((tmp_path / "ran").read_text())).kill()
    harden("handled")


def dies_with_its_parent(tmp_path: Path, command: str, code: str) -> bool:
    """Whether all processes with `mark` in their command line end when SIGKILL ends the runner."""
    mark = f"dies-{os.getpid()}-{time.monotonic_ns()}"
    start = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from dynquant.sandbox import clean_environment, confined\n"
        "from dynquant.runner.child_process import run_child\n"
        "from tests.confining import as_with_cuda\n"
        "home, code, mark = Path(sys.argv[1]), sys.argv[2], 'dies-' + sys.argv[3]\n"
        f"run_child({command}, environment=clean_environment(home, {{}}), folder=home,"
        " on_line=lambda line: print(line, flush=True), is_cancelled=lambda: False)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", start, str(tmp_path), code, mark.removeprefix("dies-")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )

    def marked() -> list[psutil.Process]:
        found = psutil.process_iter(["cmdline"])
        return [each for each in found if mark in (each.info["cmdline"] or [])]

    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    assert marked()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    return wait_until(lambda: not marked())


def test_a_compute_child_dies_with_the_process_that_started_it(tmp_path):
    """SIGKILL leaves the runner no time to clean up: the child notices by itself."""
    code = (
        "import threading, time\n"
        "from dynquant.runner.worker import _die_with_parent\n"
        "threading.Thread(target=_die_with_parent, daemon=True).start()\n"
        "print('ready', flush=True); time.sleep(3600)"
    )
    assert dies_with_its_parent(tmp_path, "[sys.executable, '-c', code, mark]", code)


@pytest.mark.harden("sandboxed compute")
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is Linux's")
@pytest.mark.parametrize("confine", ["{}", "as_with_cuda({})"])
def test_a_confined_child_dies_with_its_parent_and_so_does_what_ran_away_from_its_session(
    tmp_path, confine
):
    """It cannot notice: it holds the interpreter's lock, and its children are detached."""
    code = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)', sys.argv[1]],"
        " start_new_session=True)\n"
        "print('ready', flush=True)\n"
        "import re; re.match('(a+)+b', 'a' * 60)"
    )
    command = confine.format("confined([sys.executable, '-c', code, mark], writable=[home])")
    assert dies_with_its_parent(tmp_path, command, code)
