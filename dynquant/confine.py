"""Run a command without what a stranger's model must not reach: `python -m dynquant.confine`.

On Linux the command gets no socket (seccomp), writes only where it is told (Landlock), neither sees
nor signals other processes (user, network and PID namespaces), finds no keys where people keep them
(mount namespace), and ends with whoever started it, together with everything that it started. On a
Mac `sandbox-exec` takes the network. What the system refuses to take away stays; `dynquant doctor`
says so after trying.

Only the standard library is imported: a process with threads may not leave its namespaces.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

__all__ = ["clean_environment", "confined"]

_MARK = "DYNQUANT_CONFINED"
_INHERITED = (_MARK, "PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH")

_KEYS = (".netrc", ".git-credentials", ".ssh", ".aws", ".gnupg", ".config/gh", ".docker")
"""In a person's home; beside the tokens of huggingface_hub."""

MAC_SANDBOX = ("/usr/bin/sandbox-exec", "-p", "(version 1)(allow default)(deny network*)")
"""There was no Mac to try it on, so it takes only what is known to be of no use to MLX."""

# From linux/prctl.h, sched.h, seccomp.h, filter.h, audit.h and landlock.h.
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CLONE_NEWNS, _MS_BIND, _MS_REC_PRIVATE = 1 << 17, 1 << 12, 1 << 14 | 1 << 18
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 1 << 27, 1 << 28, 1 << 29, 1 << 30
_SECCOMP_MODE_FILTER = 2
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050001  # the last with errno 1, EPERM
_X32_CALLS = 1 << 30
_AF_UNIX, _NO_FAMILY = 1, 0xFFFF
_SOCKET_CALLS = {"x86_64": (0xC000003E, 41, 42), "aarch64": (0xC00000B7, 198, 203)}
"""Machine → how the kernel calls it, and the numbers of `socket` and `connect` there."""

_IO_URING_SETUP = 425  # it could make sockets too
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_CHANGES = {1: 0b1111111110010, 2: 1 << 13, 3: _TRUNCATE}
"""Landlock's version → what it knows of writing, removing, making and moving files."""

_SCOPES = {6: 0b11}  # abstract sockets and signals
_DEVICES = ("null", "nvidia*")
_CUDA = Path("/dev/nvidiactl")
"""Where it is, CUDA must work: it starts in no PID namespace, writes in /proc and makes a socket to
files; each was tried (driver 580). Other processes' memory and signals Landlock refuses by itself,
and nothing may connect."""


def clean_environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """What a child gets of our environment: no tokens, and a home in which there are none."""
    environment = {key: os.environ[key] for key in _INHERITED if key in os.environ}
    # Nothing that a model could have left in a folder is imported before the child is confined.
    fixed = {
        "HOME": str(home),
        "TMPDIR": str(home),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONNOUSERSITE": "1",
        "PYTHONSAFEPATH": "1",
    }
    return environment | fixed | dict(extra)


def confined(
    command: Sequence[str],
    *,
    writable: Sequence[Path],
    max_data_bytes: int | None = None,
) -> list[str]:
    """The command that runs `command` confined; this very process has to start it.

    It ends like `command`, or with 128 and the number of the signal that ended that.

    Args:
        command: Program and arguments.
        writable: Folders that it may write in; it may read whatever we may.
        max_data_bytes: Memory that it may ask for; macOS knows no such limit.
    """
    if _MARK in os.environ:
        return [*command]  # what we may not do, our children may not do either
    folders = [os.path.realpath(each) for each in writable]
    terms = {
        "parent": os.getpid(),
        "writable": folders,
        "hidden": _places_of_keys(),
        "max_data_bytes": max_data_bytes,
    }
    inner = [sys.executable, "-m", "dynquant.confine", json.dumps(terms), *command]
    return [*MAC_SANDBOX, *inner] if has_mac_sandbox() else inner


def _places_of_keys() -> list[str]:
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry of this user id: huggingface_hub takes this
        home = Path("~")
    hub = Path(os.environ.get("HF_HOME") or home / ".cache" / "huggingface")
    tokens = [hub / "token", hub / "stored_tokens"]
    if own := os.environ.get("HF_TOKEN_PATH"):
        tokens.append(Path(own))
    return [
        str(each) for each in (*tokens, *(home / key for key in _KEYS)) if _is_within_reach(each)
    ]


def _is_within_reach(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that we may not enter, nor may the command
        return False


@cache
def has_mac_sandbox() -> bool:
    """Whether `sandbox-exec` does what it is asked; there is none but on a Mac."""
    try:
        done = subprocess.run(
            [*MAC_SANDBOX, "/usr/bin/true"], capture_output=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def main(terms: Mapping[str, object], command: list[str]) -> None:
    """Give up what can be given up, then become `command`, or wait for it."""
    os.environ[_MARK] = "1"
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no weights, no texts in a crash's dump
    if sys.platform != "linux":
        os.execvp(command[0], command)  # noqa: S606
    kernel = _Kernel()
    kernel.die_with_parent()
    if os.getppid() != terms["parent"]:
        sys.exit(1)  # it was gone before we asked
    if isinstance(limit := terms["max_data_bytes"], int):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(OSError):
        # Where memory runs out all the same, the system takes this process and not its runner.
        Path("/proc/self/oom_score_adj").write_text("1000")
    is_apart = kernel.may_leave_namespaces()
    if is_apart:
        kernel.leave_namespaces()
    kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    writable, hidden = terms["writable"], terms["hidden"]
    assert isinstance(writable, list)
    assert isinstance(hidden, list)
    if is_apart:
        kernel.hide(hidden)
    kernel.allow_writing(writable)
    kernel.refuse_sockets()
    if is_apart and not _CUDA.exists():
        _fork_below_the_first_process(kernel)
    os.execvp(command[0], command)  # noqa: S606


def _fork_below_the_first_process(kernel: _Kernel) -> None:
    """Return in a grandchild. Its parent takes all other processes with it when it ends.

    That is the first process of the PID namespace, which signals such as SIGXCPU do not reach;
    so it cannot be the command itself.
    """
    if first := os.fork():
        os._exit(_exit_code(os.waitpid(first, 0)[1]))
    kernel.die_with_parent()
    if worker := os.fork():
        while True:
            pid, status = os.wait()
            if pid == worker:
                os._exit(_exit_code(status))


def _exit_code(status: int) -> int:
    """As a shell tells it: 128 and the signal that ended a process."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


class _Kernel:
    """What Linux offers and Python does not; a call that the kernel refuses changes nothing."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def prctl(self, option: int, *arguments: object) -> bool:
        """Whether the kernel took it."""
        words = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
        padding = [ctypes.c_ulong(0)] * (4 - len(words))
        return bool(self._libc.prctl(option, *words, *padding) == 0)

    def die_with_parent(self) -> None:
        """Have the kernel kill this process when its parent ends."""
        self.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def may_leave_namespaces(self) -> bool:
        """Whether it works, tried in another process: half of it cannot be taken back.

        Ubuntu 24.04 lets nobody but root say who one is in a new namespace.
        """
        if tried := os.fork():
            return os.waitpid(tried, 0)[1] == 0
        try:
            self.leave_namespaces()
        except OSError:
            os._exit(1)
        os._exit(0)

    def leave_namespaces(self) -> None:
        """Go where there is no network and no other process; the same person, and nobody else.

        Raises:
            OSError: The system does not let us.
        """
        uid, gid = os.getuid(), os.getgid()
        flags = _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWNS
        if not _CUDA.exists():
            flags |= _CLONE_NEWPID
        if self._libc.unshare(flags) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")

    def hide(self, places: Sequence[str]) -> None:
        """Put nothing in the place of files and folders; Landlock keeps it there."""
        self._libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None)
        for place in places:
            if Path(place).is_dir():
                self._libc.mount(b"none", os.fsencode(place), b"tmpfs", ctypes.c_ulong(0), None)
            else:
                flags = ctypes.c_ulong(_MS_BIND)
                self._libc.mount(b"/dev/null", os.fsencode(place), None, flags, None)

    def allow_writing(self, folders: Sequence[str]) -> None:
        """Refuse to write, make, move or remove files elsewhere."""
        version = self._libc.syscall(_CREATE_RULESET, None, 0, 1)
        changes = sum(bits for since, bits in _CHANGES.items() if version >= since)
        scopes = sum(bits for since, bits in _SCOPES.items() if version >= since)
        attributes = struct.pack("QQQ", changes, 0, scopes)
        rules = self._libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
        if version < 1 or rules < 0:
            return
        devices = [str(each) for name in _DEVICES for each in Path("/dev").glob(name)]
        if _CUDA.exists():
            devices.append("/proc")
        for path in (*folders, *devices):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            on_files = _WRITE_FILE | _TRUNCATE
            allowed = changes if path in folders else changes & on_files
            beneath = struct.pack("=Qi", allowed, descriptor)
            self._libc.syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, beneath, 0)
            os.close(descriptor)
        self._libc.syscall(_RESTRICT_SELF, rules, 0)
        os.close(rules)

    def refuse_sockets(self) -> None:
        """Have every new socket refused, also those to files, such as a Docker daemon's."""
        if (machine := platform.machine()) not in _SOCKET_CALLS:
            return
        architecture, socket, connect = _SOCKET_CALLS[machine]
        # Each refused call jumps to the last step, each harmless one to that before it.
        steps = (
            (_LOAD, 0, 0, 4),  # the architecture
            (_JUMP_EQUAL, 1, 0, architecture),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, 0),  # the number of the call
            (_JUMP_EQUAL, 6, 0, connect),
            (_JUMP_EQUAL, 5, 0, _IO_URING_SETUP),
            (_JUMP_GREATER_EQUAL, 4, 0, _X32_CALLS),
            (_JUMP_EQUAL, 0, 2, socket),
            (_LOAD, 0, 0, 16),  # its first argument
            (_JUMP_EQUAL, 0, 1, _AF_UNIX if _CUDA.exists() else _NO_FAMILY),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, _REFUSE),
        )
        program = ctypes.create_string_buffer(
            b"".join(struct.pack("HBBI", *each) for each in steps)
        )
        header = struct.pack("HP", len(steps), ctypes.addressof(program))
        self.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(header))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2:])
