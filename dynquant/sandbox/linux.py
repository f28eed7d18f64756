"""Confinement on Linux: files, sockets, permissions, and other processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from dynquant.sandbox.places import code_places, listed_places, system_files

__all__ = ["give_up"]

_CUDA = Path("/dev/nvidiactl")
"""Where it is, CUDA must work: it starts in no PID namespace, writes in its own /proc and makes a
socket to files; each was tried (driver 580). Other processes' memory and signals Landlock refuses
by itself, and nothing may connect."""

# From linux/prctl.h, sched.h, mount.h, seccomp.h, filter.h, audit.h and landlock.h.
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 1, 22, 38, 36
_PR_CAPBSET_DROP, _NUM_CAPABILITIES, _CAP_DAC_OVERRIDE = 24, 64, 1
_CLONE_NEWNS, _CLONE_NEWIPC, _CLONE_NEWUSER = 1 << 17, 1 << 27, 1 << 28
_CLONE_NEWPID, _CLONE_NEWNET = 1 << 29, 1 << 30
_MS_NOSUID_NODEV_NOEXEC, _MS_REC_PRIVATE = 0b1110, 1 << 14 | 1 << 18
_SECCOMP_MODE_FILTER = 2
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_REFUSE, _IGNORE = 0x00050001, 0x00050000  # with errno 1, EPERM, and with none
_NUMBER_AT, _ARCHITECTURE_AT, _FIRST_ARGUMENT_AT = 0, 4, 16
_X32_CALLS = 1 << 30
_AF_UNIX, _NO_FAMILY = 1, 0xFFFF

_Call = tuple[str, int, int]
_Step = tuple[int, int | str, int | str, int]
"""Code, where to go if it is so and if not, and a value."""

_IGNORED_CALLS: tuple[_Call, ...] = (
    # Name, and its number on x86_64 and on aarch64. Landlock knows nothing of permissions, and one
    # can give away what one cannot read. Compilers and Python's shutil call them on their own files
    # as well, and what they make is of use without.
    ("chmod", 90, -1), ("fchmod", 91, 52), ("fchmodat", 268, 53), ("fchmodat2", 452, 452),
    ("utime", 132, -1), ("utimes", 235, -1), ("futimesat", 261, -1), ("utimensat", 280, 88),
)  # fmt: skip
_REFUSED_CALLS: tuple[_Call, ...] = (
    ("connect", 42, 203), ("io_uring_setup", 425, 425),  # which could make sockets too
    # Permissions again, and the names of files in folders that may not be listed.
    ("chown", 92, -1), ("fchown", 93, 55), ("lchown", 94, -1), ("fchownat", 260, 54),
    ("setxattr", 188, 5), ("lsetxattr", 189, 6), ("fsetxattr", 190, 7), ("setxattrat", 463, 463),
    ("removexattr", 197, 14), ("lremovexattr", 198, 15), ("fremovexattr", 199, 16),
    ("removexattrat", 466, 466),
    ("inotify_init", 253, -1), ("inotify_init1", 294, 26), ("fanotify_init", 300, 262),
    # Memory and keys of others; without an IPC namespace, that of PostgreSQL for example.
    ("ptrace", 101, 117), ("process_vm_readv", 310, 270), ("process_vm_writev", 311, 271),
    ("shmget", 29, 194), ("semget", 64, 190), ("msgget", 68, 186), ("mq_open", 240, 180),
    ("add_key", 248, 217), ("request_key", 249, 218), ("keyctl", 250, 219),
    # Of no use here, and where the kernel has had holes.
    ("perf_event_open", 298, 241), ("bpf", 321, 280), ("userfaultfd", 323, 282),
)  # fmt: skip
_MACHINES: dict[str, tuple[int, int, int, Literal[1, 2]]] = {
    # How the kernel calls it, `socket`, `prlimit64`, and which column of the calls above.
    "x86_64": (0xC000003E, 41, 302, 1),
    "aarch64": (0xC00000B7, 198, 261, 2),
}

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_READ = _READ_FILE | _READ_DIR
_MAKE_NODES = 1 << 6 | 1 << 9 | 1 << 11  # devices and sockets
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE
_CHANGES = {1: 0b1111111110010, 2: 1 << 13, 3: _TRUNCATE}
"""Landlock's version → what it knows of writing, removing, making and moving files."""

_SCOPES = {6: 0b11}  # abstract sockets and signals
_READABLE_DEVICES = ("null", "zero", "full", "random", "urandom", "nvidia*")
_WRITABLE_DEVICES = ("null", "nvidia*")
_PROC = (
    "cpuinfo", "meminfo", "stat", "version", "filesystems", "modules", "devices", "driver", "sys",
    "uptime", "loadavg",
)  # fmt: skip
"""Of the machine, where `/proc` has other processes too."""


def give_up(
    *, parent: int, writable: Sequence[str], readable: Sequence[str], max_data_bytes: int | None
) -> None:
    """Return in a process that is confined, while this one waits for it and ends when it does.

    Args:
        parent: Process that has started this one.
        writable: Real paths of folders that it may write in.
        readable: Real paths that it may read, beside those of `places`.
        max_data_bytes: Memory that it may ask for.
    """
    kernel = _Kernel()
    kernel.signal_when_parent_ends(signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit(1)  # it was gone before we asked
    if max_data_bytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (max_data_bytes, max_data_bytes))
    with contextlib.suppress(OSError):
        # Where memory runs out all the same, the system takes this process and not its runner.
        Path("/proc/self/oom_score_adj").write_text("1000")
    has_cuda = _CUDA.exists()
    is_apart = kernel.may_leave_namespaces(and_pids=not has_cuda)
    if is_apart:
        kernel.leave_namespaces(and_pids=not has_cuda)
    kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1)
    owns_pids = is_apart and not has_cuda
    _stay_behind(kernel, owns_pids=owns_pids)
    has_own_proc = owns_pids and kernel.mount_proc()
    kernel.drop_capabilities()
    kernel.allow_files(writable, readable, has_own_proc=has_own_proc, may_write_to_itself=has_cuda)
    kernel.refuse_calls(allow_unix_sockets=has_cuda)


def _stay_behind(kernel: _Kernel, *, owns_pids: bool) -> None:
    """Return in a new process, while this one waits for it, ends all that it started, and ends.

    In a PID namespace there is one more process between them, the first of the namespace: all
    others end with it, and signals such as SIGXCPU do not reach it, so it cannot be the command.
    """
    if not owns_pids:
        # A process whose parent has ended becomes a child of this one.
        kernel.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    if child := os.fork():
        _wait_for(child, and_all_others=not owns_pids)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    kernel.signal_when_parent_ends(signal.SIGKILL)
    os.setsid()  # or it could signal the process that waits, which is of the same group
    if not owns_pids:
        return
    if worker := os.fork():
        while True:
            pid, status = os.wait()
            if pid == worker:
                os._exit(_exit_code(status))
    kernel.signal_when_parent_ends(signal.SIGKILL)


def _wait_for(child: int, *, and_all_others: bool) -> NoReturn:
    """End as `child` does, once all processes below this one have ended. SIGTERM kills them."""
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    code = _exit_code(os.waitpid(child, 0)[1])
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if and_all_others:
        _end_all_children()
    os._exit(code)


def _end_all_children() -> None:
    """Kill the children of this process until there are none; theirs become its own."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while pids := children.read_text().split():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        os.wait()


def _exit_code(status: int) -> int:
    """As a shell tells it: 128 and the signal that ended a process."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


class _Kernel:
    """System calls that Python does not offer; a call that the kernel refuses changes nothing."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)

    def prctl(self, option: int, *arguments: object) -> bool:
        """Whether the kernel took it."""
        words = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
        padding = [ctypes.c_ulong(0)] * (4 - len(words))
        return bool(self._libc.prctl(option, *words, *padding) == 0)

    def signal_when_parent_ends(self, number: signal.Signals) -> None:
        """Have the kernel send `number` to this process when its parent ends."""
        self.prctl(_PR_SET_PDEATHSIG, number)

    def may_leave_namespaces(self, *, and_pids: bool) -> bool:
        """Whether it works, tried in another process: half of it cannot be taken back.

        Ubuntu 24.04 lets only root map its account into a new namespace.
        """
        if tried := os.fork():
            return os.waitpid(tried, 0)[1] == 0
        try:
            self.leave_namespaces(and_pids=and_pids)
        except OSError:
            os._exit(1)
        os._exit(0)

    def leave_namespaces(self, *, and_pids: bool) -> None:
        """Go where there is no network and no other process, under the same account.

        Raises:
            OSError: The system does not let us.
        """
        uid, gid = os.getuid(), os.getgid()
        flags = _CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWNS
        if self._libc.unshare(flags | (_CLONE_NEWPID if and_pids else 0)) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")

    def mount_proc(self) -> bool:
        """Have `/proc` show this PID namespace alone; some containers do not let us."""
        libc, no_flags = self._libc, ctypes.c_ulong(_MS_NOSUID_NODEV_NOEXEC)
        if libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None) != 0:
            return False
        return bool(libc.mount(b"proc", b"/proc", b"proc", no_flags, None) == 0)

    def drop_capabilities(self) -> None:
        """Leave the command nothing of what root may do, in its own namespace or outside.

        But for reading and writing files of other accounts where Landlock allows it: in a container
        root often works in folders of an account of the host.
        """
        for capability in range(_NUM_CAPABILITIES):
            if capability != _CAP_DAC_OVERRIDE:
                self.prctl(_PR_CAPBSET_DROP, capability)

    def allow_files(
        self,
        writable: Sequence[str],
        readable: Sequence[str],
        *,
        has_own_proc: bool,
        may_write_to_itself: bool,
    ) -> None:
        """Refuse to read, write, make, move, remove and execute files elsewhere."""
        version = self._libc.syscall(_CREATE_RULESET, None, 0, 1)
        changes = sum(bits for since, bits in _CHANGES.items() if version >= since)
        scopes = sum(bits for since, bits in _SCOPES.items() if version >= since)
        attributes = struct.pack("QQQ", changes | _READ | _EXECUTE, 0, scopes)
        rules = self._libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
        if version < 1 or rules < 0:
            return
        to_write = changes & (_WRITE_FILE | _TRUNCATE)
        self._allow(rules, writable, (changes & ~_MAKE_NODES) | _READ)
        self._allow(rules, readable, _READ)
        self._allow(rules, code_places(), _READ | _EXECUTE)
        self._allow(rules, listed_places(), _READ_DIR)
        self._allow(rules, (*system_files(), "/sys"), _READ)
        self._allow(rules, _devices(_READABLE_DEVICES), _READ)
        self._allow(rules, _devices(_WRITABLE_DEVICES), to_write)
        if has_own_proc:
            self._allow(rules, ["/proc"], _READ)
        else:
            itself = _READ | (to_write if may_write_to_itself else 0)
            self._allow(rules, [f"/proc/{each}" for each in _PROC], _READ, is_kept=True)
            self._allow(rules, ["/proc/self"], itself, is_kept=True)
        self._libc.syscall(_RESTRICT_SELF, rules, 0)
        os.close(rules)

    def _allow(
        self, rules: int, paths: Iterable[str], rights: int, *, is_kept: bool = False
    ) -> None:
        """Add a rule for each path that is there.

        Args:
            rules: Descriptor of the ruleset.
            paths: Files and folders.
            rights: Allowed there, and below.
            is_kept: Whether the descriptors stay open. The kernel drops entries of `/proc` that no
                process holds, and the ones that it makes anew are under no rule.
        """
        for path in paths:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue
            on_this = rights if os.path.isdir(path) else rights & _ON_FILES  # noqa: PTH112
            beneath = struct.pack("=Qi", on_this, descriptor)
            self._libc.syscall(_ADD_RULE, rules, _RULE_PATH_BENEATH, beneath, 0)
            if is_kept:
                os.set_inheritable(descriptor, True)
            else:
                os.close(descriptor)

    def refuse_calls(self, *, allow_unix_sockets: bool) -> None:
        """Have the calls refused that Landlock and namespaces let pass, new sockets included."""
        if (machine := platform.machine()) not in _MACHINES:
            return
        architecture, socket, prlimit, column = _MACHINES[machine]
        numbers = {
            "refuse": [call[column] for call in _REFUSED_CALLS if call[column] >= 0],
            "ignore": [call[column] for call in _IGNORED_CALLS if call[column] >= 0],
        }
        family = _AF_UNIX if allow_unix_sockets else _NO_FAMILY
        # A jump counts the steps that it leaves out, or names one of the last four.
        body: list[_Step] = [
            (_LOAD, 0, 0, _NUMBER_AT),
            *((_JUMP_EQUAL, end, 0, number) for end, calls in numbers.items() for number in calls),
            (_JUMP_GREATER_EQUAL, "refuse", 0, _X32_CALLS),
            (_JUMP_EQUAL, 0, 2, socket),
            (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
            (_JUMP_EQUAL, "allow", "refuse", family),
            (_JUMP_EQUAL, 0, "allow", prlimit),
            (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
            (_JUMP_EQUAL, "allow", "refuse", 0),  # its own limits, and not its runner's
        ]
        ends = {"refuse": _REFUSE, "ignore": _IGNORE, "allow": _ALLOW, "kill": _KILL}
        steps: list[_Step] = [
            (_LOAD, 0, 0, _ARCHITECTURE_AT),
            (_JUMP_EQUAL, 0, "kill", architecture),
            *body,
            *((_RETURN, 0, 0, value) for value in ends.values()),
        ]
        places = {end: len(steps) - len(ends) + number for number, end in enumerate(ends)}

        def distance(at: int, target: int | str) -> int:
            return target if isinstance(target, int) else places[target] - at - 1

        program = ctypes.create_string_buffer(
            b"".join(
                struct.pack("HBBI", code, distance(at, yes), distance(at, no), value)
                for at, (code, yes, no, value) in enumerate(steps)
            )
        )
        header = struct.pack("HP", len(steps), ctypes.addressof(program))
        self.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.c_char_p(header))


def _devices(patterns: Sequence[str]) -> list[str]:
    return [str(each) for pattern in patterns for each in Path("/dev").glob(pattern)]
