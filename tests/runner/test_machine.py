from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from dynquant.runner.machine import awake, chip_name, is_memory_short, usable_memory_bytes
from tests.waiting import wait_until

GIB = 2**30

# Replacements of the systems' own tools, with the behaviour that `awake` needs.
CAFFEINATE = """\
#!/bin/sh
echo "$@" > {said}
echo $$ > {pid}
for last; do :; done
while kill -0 "$last" 2>/dev/null; do sleep 0.05; done
"""
SYSTEMD_INHIBIT = """\
#!/bin/sh
echo "$@" > {said}
echo $$ > {pid}
while [ "${{1#--}}" != "$1" ]; do shift; done
"$@"
"""
STUBBORN = """\
#!/bin/sh
trap '' TERM
echo $$ > {pid}
while :; do sleep 0.05; done
"""
SYSCTL = """\
#!/bin/sh
[ "$*" = "-n iogpu.wired_limit_mb" ] && echo 57344
"""
REFUSING = """\
#!/bin/sh
echo 'Access denied' >&2
exit 1
"""


@pytest.fixture
def tools(tmp_path, monkeypatch) -> Path:
    """A folder of programs that comes first in PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def install(tools: Path, name: str, script: str) -> None:
    path = tools / name
    path.write_text(script.format(said=tools / "said", pid=tools / "pid"))
    path.chmod(0o755)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def pid_in(tools: Path) -> int:
    file = tools / "pid"
    wait_until(lambda: file.exists() and file.read_text().strip())
    return int(file.read_text())


@pytest.mark.parametrize(
    ("platform", "name", "script", "said"),
    [
        ("darwin", "caffeinate", CAFFEINATE, f"-i -m -w {os.getpid()}"),
        (
            "linux",
            "systemd-inhibit",
            SYSTEMD_INHIBIT,
            "--what=idle:sleep --who=dynquant --why=Quantizing org/Model --mode=block cat",
        ),
    ],
    ids=["darwin", "linux"],  # the same in every worker of pytest-xdist
)
def test_the_tool_of_the_system_runs_exactly_as_long_as_the_job(
    tools, platform, name, script, said, caplog
):
    caplog.set_level(logging.INFO)
    install(tools, name, script)
    with awake("Quantizing org/Model", platform=platform):
        pid = pid_in(tools)
        assert (tools / "said").read_text().strip() == said
        assert is_alive(pid)
    assert not is_alive(pid)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("platform", "name", "script"),
    [
        ("darwin", "caffeinate", CAFFEINATE),
        ("linux", "systemd-inhibit", SYSTEMD_INHIBIT),
    ],
)
def test_the_tool_ends_with_a_runner_that_is_killed(tools, platform, name, script):
    install(tools, name, script)
    code = f"""
        import time
        from dynquant.runner.machine import awake, chip_name
        with awake("a job", platform={platform!r}):
            time.sleep(3600)
    """
    runner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    try:
        pid = pid_in(tools)
        assert is_alive(pid)
    finally:
        runner.kill()
        runner.wait()
    wait_until(lambda: not is_alive(pid))


def test_a_missing_tool_is_one_line_in_the_log(tools, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("PATH", str(tools))
    with awake("a job", platform="linux"):
        pass
    (record,) = caplog.records
    assert record.getMessage() == (
        "This machine may fall asleep during a job: systemd-inhibit cannot be run "
        "(No such file or directory)."
    )


def test_a_tool_that_is_refused_is_one_line_in_the_log_while_the_job_runs(tools, caplog):
    caplog.set_level(logging.INFO)
    install(tools, "systemd-inhibit", REFUSING)
    with awake("a job", platform="linux"):
        wait_until(lambda: caplog.records)
    (record,) = caplog.records
    assert "systemd-inhibit ended by itself (code 1)" in record.getMessage()


def test_an_error_of_the_job_goes_on_and_the_tool_ends(tools):
    install(tools, "caffeinate", CAFFEINATE)

    def job() -> None:
        with awake("a job", platform="darwin"):
            pid_in(tools)
            raise KeyError("of the job")

    with pytest.raises(KeyError, match="of the job"):
        job()
    assert not is_alive(pid_in(tools))


def test_a_tool_that_does_not_end_is_killed(tools):
    install(tools, "caffeinate", STUBBORN)
    with awake("a job", platform="darwin"):
        pid = pid_in(tools)
    assert not is_alive(pid)


def test_a_job_runs_here_whatever_this_machine_grants(caplog):
    caplog.set_level(logging.INFO)
    with awake("a test"):
        pass
    assert len(caplog.records) <= 1


def printing(**printed: str):
    """A machine whose `sysctl` prints these values, and nothing for other names."""

    def run(command: Sequence[str]) -> str:
        assert command[:2] == ["sysctl", "-n"]
        return printed.get(command[2].rpartition(".")[2], "")

    return run


@pytest.mark.parametrize(
    ("total_gib", "printed", "usable_bytes"),
    [
        (16, "0\n", round(2 / 3 * 16 * GIB)),
        (36, "0\n", 27 * GIB),
        (64, "0\n", 48 * GIB),
        (64, "57344\n", 56 * GIB),
        (64, "", 48 * GIB),  # a system without the setting
        (64, "99999999\n", 64 * GIB),
    ],
)
def test_on_a_mac_a_job_may_take_what_the_gpu_may_use(total_gib, printed, usable_bytes):
    run = printing(wired_limit_mb=printed)
    assert usable_memory_bytes(total_gib * GIB, platform="darwin", run=run) == usable_bytes


def test_the_limit_of_a_mac_is_asked_of_its_own_tool(tools, monkeypatch):
    monkeypatch.setenv("PATH", str(tools))
    assert usable_memory_bytes(64 * GIB, platform="darwin") == 48 * GIB, "there is no sysctl yet"
    install(tools, "sysctl", SYSCTL)
    assert usable_memory_bytes(64 * GIB, platform="darwin") == 56 * GIB
    assert not is_memory_short(platform="darwin")


def test_a_machine_says_what_its_chip_is_called(tmp_path):
    run = printing(brand_string="Apple M3 Max\n")
    assert chip_name(platform="darwin", run=run) == "Apple M3 Max"
    assert chip_name(platform="darwin", run=printing()) == ""
    assert chip_name(platform="linux", root=tmp_path) == ""
    (tmp_path / "proc").mkdir()
    lines = "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nmodel name\t: another\n"
    (tmp_path / "proc" / "cpuinfo").write_text(lines)
    assert chip_name(platform="linux", root=tmp_path) == "AMD EPYC 7B13"
    (tmp_path / "proc" / "cpuinfo").write_text("processor\t: 0\n")  # as on ARM
    assert chip_name(platform="linux", root=tmp_path) == ""


@pytest.mark.parametrize(("level", "short"), [("1\n", False), ("2\n", True), ("4\n", True)])
def test_a_mac_says_itself_when_memory_runs_short(level, short):
    run = printing(memorystatus_vm_pressure_level=level)
    assert is_memory_short(platform="darwin", run=run) is short


def test_a_mac_that_does_not_say_and_linux_are_not_short():
    assert not is_memory_short(platform="darwin", run=printing())
    assert not is_memory_short(platform="linux")


# Of a desktop, a Docker container, a systemd service, and two with the first version of groups.
DESKTOP = "0::/user.slice/user-1000.slice/session-2.scope\n"
CONTAINER = "0::/\n"
SERVICE = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/dynquant-runner.service\n"
FIRST_VERSION = "9:name=systemd:/\n4:memory:/api/0ec02f\n3:cpuset:/\n0::/\n"
FIRST_CONTAINER = "11:cpu,cpuacct:/docker/ab12\n7:memory,hugetlb:/docker/ab12\n"
NO_LIMIT = "9223372036854771712\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "usable_gib"),
    [
        (DESKTOP, {"user.slice/memory.max": "max\n"}, 90),
        (CONTAINER, {"memory.max": f"{40 * GIB}\n"}, 36),
        (
            SERVICE,
            {
                f"{SERVICE.strip()[4:]}/memory.max": "max\n",
                "user.slice/user-1000.slice/memory.max": f"{20 * GIB}\n",
                "user.slice/memory.max": f"{50 * GIB}\n",
            },
            18,
        ),
        (FIRST_VERSION, {"memory/memory.limit_in_bytes": NO_LIMIT}, 90),
        (FIRST_VERSION, {"memory/api/0ec02f/memory.limit_in_bytes": f"{10 * GIB}\n"}, 9),
        (FIRST_CONTAINER, {"memory/memory.limit_in_bytes": f"{30 * GIB}\n"}, 27),
    ],
)
def test_on_linux_a_job_may_take_most_of_the_smallest_limit(tmp_path, cgroup, files, usable_gib):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    usable = usable_memory_bytes(100 * GIB, platform="linux", root=tmp_path)
    assert usable == usable_gib * GIB


def test_without_control_groups_nine_tenths_are_usable(tmp_path):
    assert usable_memory_bytes(100 * GIB, platform="linux", root=tmp_path) == 90 * GIB


def test_this_machine_has_memory_for_jobs_and_keeps_some():
    total = psutil.virtual_memory().total
    assert 0 < usable_memory_bytes(total) < total


HEAPS = """
import ctypes, gc, os, sys, threading
from dynquant.runner.machine import keep_memory_flat

if sys.argv[1] == "flat":
    keep_memory_flat()
    assert gc.get_freeze_count() > 1000
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes = [ctypes.c_int, ctypes.c_void_p]
ready, all_there = threading.Barrier(8), threading.Barrier(8)

def allocate():
    ready.wait()
    libc.malloc(1000)
    all_there.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
file = libc.fdopen(os.dup(1), b"w")
libc.malloc_info(0, file)
libc.fflush(None)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="heaps per thread are a matter of glibc")
def test_the_threads_of_a_process_that_is_kept_flat_share_one_heap():
    def num_heaps(how: str) -> int:
        child = subprocess.run(
            [sys.executable, "-c", HEAPS, how], capture_output=True, text=True, check=True
        )
        return child.stdout.count("<heap nr")

    assert num_heaps("as it is") > 1
    assert num_heaps("flat") == 1
