"""Restrictions of a confined process, tried from inside."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from dynquant.sandbox import clean_environment, confined
from tests.confining import as_with_cuda
from tests.waiting import PATIENCE_SECS, wait_until

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
        timeout=PATIENCE_SECS,
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
    inner = f"import socket, sys; place, runner = sys.argv[1:]\n{code}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "agent"))
        listener.listen()
        command = [sys.executable, "-c", inner, str(tmp_path / "agent"), str(os.getpid())]
        done = started(as_with_cuda(confined(command, writable=[home])), home)
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


def test_it_writes_in_its_folders_and_reads_what_it_is_given(home, tmp_path):
    (tmp_path / "model").write_text("weights")
    code = (
        "import os, sys; from pathlib import Path\n"
        "Path('a').mkdir(); Path('a/x').write_text(open(sys.argv[1]).read())\n"
        "os.rename('a/x', 'y'); open('/dev/null', 'w').write('x'); print(Path('y').read_text())"
    )
    done = run(code, home, tmp_path / "model", readable=[tmp_path / "model"])
    assert done.stdout == "weights\n"


@on_linux
def test_the_environment_of_its_runner_cannot_be_read(home, harden):
    """There the token stands, and both belong to the same person."""
    code = "import sys; print(open(f'/proc/{sys.argv[1]}/environ').read())"
    refused(code, home, os.getpid(), error="FileNotFoundError")
    harden("refused")


@on_linux
@pytest.mark.parametrize("has_cuda", [False, True])
def test_no_other_process_is_seen(home, has_cuda, harden):
    """A password may stand on a command line."""
    code = (
        "import pathlib\n"
        "try: found = list(pathlib.Path('/proc').glob('[0-9]*'))\n"
        "except PermissionError: found = []\n"
        "def line(each):\n"
        "    try: return (each / 'cmdline').read_bytes()\n"
        "    except OSError: return b''\n"
        "print(len([each for each in found if b'can' + b'ary' in line(each)]), len(found) > 9)"
    )
    with subprocess.Popen([sys.executable, "-c", "input()", "canary"], stdin=subprocess.PIPE):
        command = confined([sys.executable, "-c", code], writable=[home])
        done = started(as_with_cuda(command) if has_cuda else command, home)
    assert done.stdout == "0 False\n", done
    harden("refused")


SECRETS = (
    "hf/token", ".ssh/id_rsa", ".netrc", ".config/dynquant/runner.env", ".config/gcloud/key.json",
    ".pgpass", ".kube/config", ".aws/credentials", ".dynquant/jobs.sqlite", ".dynquant/jobs/2/spec",
    "notes.txt", "project/.env",
)  # fmt: skip
READ_ALL = """
import os, sys
for place in sys.argv[1:]:
    try:
        print(open(place).read())
    except PermissionError:
        print('refused')
"""


@on_linux
@pytest.mark.parametrize("has_cuda", [False, True])
def test_nothing_of_its_runners_account_is_read(home, tmp_path, monkeypatch, has_cuda, harden):
    """Not only where keys are known to be: there is a list of what may be read."""
    for name in SECRETS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("canary")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.syspath_prepend(tmp_path / "project")  # as of python -m
    places = [str(tmp_path / name) for name in SECRETS]
    command = confined([sys.executable, "-c", READ_ALL, *places], writable=[home])
    done = started(as_with_cuda(command) if has_cuda else command, home)
    assert done.stdout.split() == ["refused"] * len(SECRETS), done
    harden("refused")


@on_linux
@pytest.mark.parametrize(
    "place", ["/etc/shadow", "/var/log", "/root", "/home", "/tmp", "/dev/shm", "/dev/mem", "/opt"]
)
def test_the_rest_of_the_system_is_not_read(home, place, harden):
    code = "import os, sys; p = sys.argv[1]; os.listdir(p) if os.path.isdir(p) else open(p)"
    if Path(place).exists():
        refused(code, home, place)
        harden("refused")


@on_linux
@pytest.mark.parametrize("act", ["chmod(s, 0o666)", "chmod(s, 0)", "setxattr(s, 'user.a', b'b')"])
def test_nobody_is_let_in_to_what_it_may_not_read_itself(home, tmp_path, act, harden):
    """Landlock knows nothing of permissions: it made the token readable to everybody."""
    secret = tmp_path / "token"
    secret.write_text("canary")
    secret.chmod(0o600)
    code = f"import os, sys; s = sys.argv[1]\ntry: os.{act}\nexcept OSError: pass"
    assert run(code, home, secret).returncode == 0
    assert secret.stat().st_mode & 0o777 == 0o600
    assert os.listxattr(secret) == []
    harden("refused")


@on_linux
@pytest.mark.parametrize("has_cuda", [False, True])
def test_no_power_of_root_is_left(home, has_cuda, harden):
    """In its user namespace it had all of them, and mounts, devices and new ones to try them on."""
    code = "print(*[line for line in open('/proc/self/status') if line.startswith('Cap')])"
    command = confined([sys.executable, "-c", code], writable=[home])
    done = started(as_with_cuda(command) if has_cuda else command, home)
    found = dict(line.split(":") for line in done.stdout.splitlines() if line.strip())
    left = {name.strip(): int(value, 16) for name, value in found.items()}
    assert left.keys() == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
    files_of_others = 1 << 1  # where Landlock lets it
    assert not any(each & ~files_of_others for each in left.values())
    harden("refused")


@on_linux
@pytest.mark.parametrize(
    "act",
    [
        "os.utime(secret, (0, 0)) or os.stat(secret).st_mtime == 0",
        "libc.inotify_add_watch(libc.inotify_init1(0), folder.encode(), 0xfff) >= 0",
        "os.open(secret[1:], 0, dir_fd=libc.syscall(428, -100, b'/', 0x8001)) or True",
        "os.mknod('device', 0o60600, os.makedev(254, 0)) or True",
        "socket.socket(socket.AF_UNIX).bind('socket') or True",
        "os.link(secret, 'mine') or True",
        "os.chdir(folder) or bool(os.listdir('.'))",
        "os.open('/proc/self/root' + secret, 0) and True",
        "bool(os.open(f'/proc/{os.getppid()}/root{secret}', 0))",
    ],
)
def test_no_other_way_leads_to_what_is_not_its_own(home, tmp_path, act, harden):
    (tmp_path / "secret").write_text("canary")
    code = (
        "import ctypes, os, socket, sys\n"
        "secret, folder = sys.argv[1:]\nlibc = ctypes.CDLL(None)\n"
        f"try: worked = {act}\nexcept OSError: worked = False\nprint(worked)"
    )
    done = run(code, home, tmp_path / "secret", tmp_path)
    assert done.stdout == "False\n", done
    harden("refused")


@on_linux
@pytest.mark.parametrize(
    "act",
    [
        "libc.shmget(0x6474, 4096, 0o1600)",  # memory that processes share, as PostgreSQL's do
        "libc.mq_open(b'/dynquant', os.O_RDWR | os.O_CREAT, 0o600, None)",
        "libc.syscall(250 if x86 else 219, 0, -3, 1)",  # the keys of the session
        "libc.ptrace(16, int(sys.argv[1]), 0, 0)",
        "libc.syscall(302 if x86 else 261, int(sys.argv[1]), 7, None, out)",  # its runner's limits
        "os.open('/dev/shm/dynquant', os.O_RDWR | os.O_CREAT)",
        "os.open(f'/proc/{sys.argv[1]}/oom_score_adj', os.O_WRONLY)",
        "os.open(f'/proc/{sys.argv[1]}/cmdline', os.O_RDONLY)",
        "os.open(f'/proc/{sys.argv[1]}/cwd/pyproject.toml', os.O_RDONLY)",
        "os.kill(int(sys.argv[1]), 0)",
        "libc.syscall(425, 8, out)",
    ],
)
def test_its_runner_is_out_of_reach_where_it_can_be_named(home, act, harden):
    """Where CUDA must work there is no PID namespace."""
    code = (
        "import ctypes, os, platform, sys\n"
        "libc, x86 = ctypes.CDLL(None), platform.machine() == 'x86_64'\n"
        "out = ctypes.create_string_buffer(256)\n"
        f"try: worked = {act} != -1\nexcept OSError: worked = False\nprint(worked)"
    )
    command = confined([sys.executable, "-c", code, str(os.getpid())], writable=[home])
    assert started(as_with_cuda(command), home).stdout == "False\n"
    harden("refused")


@on_linux
@pytest.mark.parametrize("has_cuda", [False, True])
def test_what_ran_away_ends_when_its_step_ends(home, has_cuda, harden):
    """It left its session, its parent and its group, and went on to write and to compute."""
    run_away = (
        "import os, signal, sys, time\n"
        "for number in (signal.SIGTERM, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)\n"
        "for _ in range(3):\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.setsid()\n"
        "os.close(1); os.close(2)\n"  # or it would be waited for
        "open('ran', 'w').close(); time.sleep(3600)"
    )
    code = (
        "import os, subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]])\n"
        "while not os.path.exists('ran'): time.sleep(0.01)"
    )
    mark = f"run-away-{uuid.uuid4()}"
    command = confined([sys.executable, "-c", code, run_away, mark], writable=[home])
    done = started(as_with_cuda(command) if has_cuda else command, home)
    assert done.returncode == 0, done
    assert not [each for each in psutil.process_iter(["cmdline"]) if mark in _words(each)]
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
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)', sys.argv[1]],"
        " start_new_session=True)"
    )
    mark = f"grandchild-{uuid4()}"
    assert run(code, home, mark).returncode == 0
    wait_until(
        lambda: not [each for each in psutil.process_iter(["cmdline"]) if mark in _words(each)]
    )


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
        "import subprocess, sys; from pathlib import Path; from dynquant.sandbox import confined\n"
        "command = confined([sys.executable, '-c', 'print(1)'], writable=[Path.cwd()])\n"
        "print(len(command), subprocess.run(command, capture_output=True).stdout)"
    )
    assert run(code, home).stdout == "3 b'1\\n'\n"


@on_linux
def test_where_no_namespace_may_be_made_the_rest_holds(home, tmp_path, harden):
    """As in many containers and on Ubuntu 24.04; here since the confined may not write the map."""
    nested = (
        "import json, os, subprocess, sys; from dynquant.sandbox import confined\n"
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
