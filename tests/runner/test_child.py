from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dynquant.confine import clean_environment
from dynquant.runner.child import (
    ChildCancelledError,
    ChildMemoryError,
    ChildSilentError,
    run_child,
)
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
    with pytest.raises(ChildSilentError):
        run("while True: print('x' * 1_000_000, end='')", tmp_path)


def assert_dies_with_its_parent(tmp_path: Path, command: str, code: str) -> None:
    """All processes whose ids `code` prints end when SIGKILL ends the process that started it."""
    start = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from dynquant.confine import clean_environment, confined\n"
        "from dynquant.runner.child import run_child\n"
        "home = Path(sys.argv[1])\n"
        f"run_child({command}, environment=clean_environment(home, {{}}), folder=home,"
        " on_line=lambda line: print(line, flush=True), is_cancelled=lambda: False)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", start, str(tmp_path), code], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert pids
    assert all(map(is_alive, pids))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not any(map(is_alive, pids)))


def test_a_compute_child_dies_with_the_process_that_started_it(tmp_path):
    """SIGKILL leaves no time to clean up: the child notices by itself."""
    code = (
        "import threading, time\n"
        "from dynquant.runner.compute import _die_with_parent\n"
        "threading.Thread(target=_die_with_parent, daemon=True).start()\n"
        "import os; print(os.getpid(), flush=True); time.sleep(3600)"
    )
    assert_dies_with_its_parent(tmp_path, "[sys.executable, '-c', sys.argv[2]]", code)


@pytest.mark.harden("sandboxed compute")
@pytest.mark.skipif(sys.platform != "linux", reason="PID namespaces are Linux's")
def test_a_confined_child_dies_with_its_parent_and_so_does_what_ran_away_from_its_session(tmp_path):
    """It notices nothing by itself: it holds the interpreter's lock, and its children left."""
    code = (
        "import os, subprocess, sys, time\n"
        "ran = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'],"
        " start_new_session=True)\n"
        "children = open(f'/proc/self/task/{os.readlink(\"/proc/self\")}/children').read()\n"
        "print(os.readlink('/proc/self'), children, flush=True)\n"
        "import re; re.match('(a+)+b', 'a' * 60)"
    )
    command = "confined([sys.executable, '-c', sys.argv[2]], writable=[home])"
    assert_dies_with_its_parent(tmp_path, command, code)
