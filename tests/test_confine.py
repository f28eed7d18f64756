"""What a confined process cannot do any more, tried from inside."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dynquant import confine
from dynquant.confine import clean_environment, confined

pytestmark = pytest.mark.harden("sandboxed compute")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel is Linux's")


def run(code: str, home: Path, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return started(confined(command, writable=[home], **options), home)


def started(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=clean_environment(home, {}),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def refused(code: str, home: Path, *arguments: object, error: str = "PermissionError") -> str:
    """The complaint with which `code` failed, which works outside."""
    done = run(code, home, *arguments)
    assert done.returncode == 1, done
    assert error in done.stderr
    return done.stderr


@pytest.fixture
def home(tmp_path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@on_linux
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_no_connection_can_be_made(home, address, harden):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError:
        pytest.skip(f"this machine has no {address}")
    with listener:
        code = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)"
        refused(code, home, address, listener.getsockname()[1])
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()
    harden("refused")


@on_linux
def test_no_service_that_listens_on_a_file_can_be_reached(home, tmp_path, harden):
    """Such as Docker's, PostgreSQL's or an SSH agent's: no network namespace hides them."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent"))
        listener.listen()
        code = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"
        refused(code, home, tmp_path / "agent")
    harden("refused")


@on_linux
@pytest.mark.parametrize(
    ("code", "works"),
    [
        ("socket.socket(socket.AF_UNIX)", True),  # what CUDA needs
        ("open('/proc/self/comm', 'w').write('me')", True),
        ("socket.socket(socket.AF_UNIX).connect(place)", False),
        ("socket.socket()", False),
        ("socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)", False),
        ("socket.socket(socket.AF_NETLINK)", False),
        ("open(place + '.new', 'w')", False),
        ("open(f'/proc/{runner}/mem', 'rb').read(1)", False),
        ("open(f'/proc/{runner}/environ', 'rb').read(1)", False),
    ],
)
def test_where_cuda_must_work_all_else_is_refused_as_well(home, tmp_path, code, works, harden):
    """As on a machine with an NVIDIA GPU, where this was found; here there may be none."""
    terms = {"parent": os.getpid(), "writable": [str(home)], "hidden": [], "max_data_bytes": None}
    confine = (
        "import json, sys; from pathlib import Path; import dynquant.confine as confine\n"
        "confine._CUDA = Path('/dev/null')\n"
        "confine.main(json.loads(sys.argv[1]), sys.argv[2:])"
    )
    inner = f"import socket, sys; place, runner = sys.argv[1:]\n{code}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent"))
        listener.listen()
        command = [sys.executable, "-c", inner, str(tmp_path / "agent"), str(os.getpid())]
        done = started([sys.executable, "-c", confine, json.dumps(terms), *command], home)
    assert (done.returncode == 0) is works, done.stderr
    assert works or "PermissionError" in done.stderr
    harden("handled" if works else "refused")


@on_linux
@pytest.mark.parametrize(
    "code",
    [
        "import sys; open(sys.argv[1] + '/new', 'w')",
        "import sys; open(sys.argv[1] + '/there', 'w')",
        "import os, sys; os.remove(sys.argv[1] + '/there')",
        "import os, sys; os.mkdir(sys.argv[1] + '/new')",
        "import os, sys; os.truncate(sys.argv[1] + '/there', 0)",
        "import os, sys; os.link(sys.argv[1] + '/there', 'mine')",
        "import os, sys; os.symlink(sys.argv[1], 'out'); open('out/new', 'w')",
    ],
)
def test_nothing_is_written_outside_of_its_folders(home, tmp_path, code, harden):
    (tmp_path / "there").write_text("ours")
    refused(code, home, tmp_path, error="Error: [Errno")
    assert (tmp_path / "there").read_text() == "ours"
    assert not (tmp_path / "new").exists()
    harden("refused")


def test_it_writes_in_its_folders_and_reads_others(home, tmp_path):
    (tmp_path / "model").write_text("weights")
    code = (
        "import os, sys; from pathlib import Path\n"
        "Path('a').mkdir(); Path('a/x').write_text(open(sys.argv[1]).read())\n"
        "os.rename('a/x', 'y'); open('/dev/null', 'w').write('x'); print(Path('y').read_text())"
    )
    assert run(code, home, tmp_path / "model").stdout == "weights\n"


@on_linux
def test_the_environment_of_its_runner_cannot_be_read(home, harden):
    """There the token stands, and both belong to the same person."""
    code = "import sys; print(open(f'/proc/{sys.argv[1]}/environ').read())"
    refused(code, home, os.getpid())
    harden("refused")


@on_linux
def test_the_keys_of_its_runner_are_not_where_they_are(home, tmp_path, monkeypatch, harden):
    (tmp_path / "hf").mkdir()
    (tmp_path / ".ssh").mkdir()
    for name in ("hf/token", ".ssh/id_rsa", ".netrc"):
        (tmp_path / name).write_text("canary")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    code = (
        "import sys; from pathlib import Path\n"
        "print([each.read_bytes() for each in Path(sys.argv[1]).rglob('*') if not each.is_dir()])\n"
        "import ctypes; print(ctypes.CDLL(None).umount2(f'{sys.argv[1]}/.netrc'.encode(), 2))"
    )
    assert run(code, home, tmp_path).stdout == "[b'', b'']\n-1\n"
    assert (tmp_path / "hf" / "token").read_text() == "canary"
    harden("refused")


@on_linux
def test_its_runner_cannot_be_signalled(home, harden):
    code = "import os, sys; os.kill(int(sys.argv[1]), 0)"
    refused(code, home, os.getpid(), error="ProcessLookupError")
    harden("refused")


@on_linux
def test_more_memory_than_it_may_have_is_refused_at_once(home, harden):
    done = run("bytearray(900_000_000)", home, max_data_bytes=500_000_000)
    assert "MemoryError" in done.stderr
    harden("refused")


@on_linux
def test_a_child_of_it_that_leaves_its_session_ends_with_it(home):
    code = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', sys.argv[1]],"
        " start_new_session=True)"
    )
    mark = f"grandchild-{os.getpid()}-{time.monotonic_ns()}"
    assert run(code, home, mark).returncode == 0
    assert not [each for each in psutil.process_iter(["cmdline"]) if mark in _words(each)]


def _words(process: psutil.Process) -> list[str]:
    return process.info["cmdline"] or []


def test_a_crash_leaves_no_dump_of_memory(home):
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        done = run("import os; os.abort()", home)
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))
    assert done.returncode in {128 + signal.SIGABRT, -signal.SIGABRT}
    assert list(home.iterdir()) == []


@on_linux
def test_a_limit_of_cpu_time_ends_it_as_a_shell_tells_it(home):
    code = "import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 5))\nwhile True: pass"
    assert run(code, home).returncode == 128 + signal.SIGXCPU


def test_exit_codes_and_output_pass_through(home):
    done = run("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)", home)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_no_token_is_in_its_environment_and_its_home_is_its_own(home, monkeypatch, harden):
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("DYNQUANT_DATABASE_URL", "postgresql://u:hf_canary@h/d")
    done = run("import os; print(dict(os.environ), os.getcwd())", home)
    assert "hf_canary" not in done.stdout
    assert f"'HOME': '{home}'" in done.stdout
    assert done.stdout.endswith(f"{home}\n")
    harden("refused")


def test_what_lies_in_its_folder_is_not_imported_before_it_is_confined(home, harden):
    """A model's process could leave it there for the next one."""
    for name in ("dynquant.py", "json.py", "usercustomize.py", "sitecustomize.py"):
        (home / name).write_text("raise SystemExit('planted')")
    done = run("print('clean')", home)
    assert (done.stdout, done.stderr) == ("clean\n", "")
    harden("refused")


def test_what_is_confined_may_run_more_without_being_confined_again(home):
    code = (
        "import subprocess, sys; from pathlib import Path; from dynquant.confine import confined\n"
        "command = confined([sys.executable, '-c', 'print(1)'], writable=[Path.cwd()])\n"
        "print(len(command), subprocess.run(command, capture_output=True).stdout)"
    )
    assert run(code, home).stdout == "3 b'1\\n'\n"


@on_linux
def test_where_no_namespace_may_be_made_the_rest_holds(home, tmp_path, harden):
    """As in many containers and on Ubuntu 24.04; here since the confined may not write the map."""
    nested = (
        "import json, os, subprocess, sys; from dynquant.confine import confined\n"
        "from pathlib import Path\n"
        "os.environ.pop('DYNQUANT_CONFINED')\n"
        "command = confined([sys.executable, '-c', sys.argv[1]], writable=[Path.cwd()])\n"
        "done = subprocess.run(command, capture_output=True, text=True)\n"
        "print(done.returncode, done.stdout, done.stderr)"
    )
    code = (
        "import os, socket\n"
        "open('here', 'w').close()\n"
        "for each in (socket.socket, lambda: open('../there', 'w')):\n"
        "    try: each()\n"
        "    except PermissionError: print('refused')"
    )
    assert run(nested, home, code).stdout.split() == ["0", "refused", "refused"]
    assert (home / "here").exists()
    assert not (tmp_path / "there").exists()
    harden("refused")


@pytest.mark.harden("mishaps")
def test_a_token_is_hidden_also_where_the_user_has_no_home(tmp_path, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").touch()
    (tmp_path / "own").touch()
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "own"))
    assert confine._places_of_keys() == [str(tmp_path / "token"), str(tmp_path / "own")]
