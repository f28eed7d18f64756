"""A profile for `sandbox-exec`: no network, files by list, none of the services that hold secrets.

The profile was not run: there was no Mac. It follows profiles that Chromium and others publish.
Each Mac tries it with MLX first; where that fails, only the network is taken away.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache

from dynquant.sandbox.places import code_places, listed_places, system_files

__all__ = ["profile", "sandbox_exec"]

_IS_MAC = sys.platform == "darwin"
_PROGRAM = "/usr/bin/sandbox-exec"
_TIMEOUT_SECS = 60.0
_NETWORK_ONLY = "(version 1)(allow default)(deny network*)"
_TRY_MLX = (
    "import dynquant.quant.mlx, mlx.core as mx;"
    "mx.eval(mx.compile(lambda x: mx.exp(x) * 2 + 1)(mx.ones((8, 8))))"
)
"""Opens the GPU and has a kernel compiled for it."""

_READABLE_DEVICES = ("null", "zero", "random", "urandom", "dtracehelper", "autofs_nowait")
_WRITABLE_DEVICES = ("null", "zero", "dtracehelper")

_READABLE = ("/private/var/db/timezone", "/private/var/db/dyld", "/private/var/select")
_CACHES = "/private/var/folders/[^/]+/[^/]+/C"
_METAL_CACHE = rf'(regex #"^{_CACHES}/([^/]+/)?com\.apple\.metal(fe)?(/|$)")'
"""Where Metal keeps what it has compiled, by program; without it the GPU's compiler waits."""

_SERVICES = (
    "com.apple.SecurityServer", "com.apple.securityd*", "com.apple.secd*", "com.apple.ctkd*",
    "com.apple.security*", "com.apple.pasteboard*", "com.apple.pboard", "com.apple.accountsd*",
    "com.apple.coreservices.launchservicesd", "com.apple.coreservices.appleevents",
    "com.apple.lsd.*", "com.apple.tccd*", "com.apple.dock*", "com.apple.windowserver*",
    "com.apple.ssh-agent", "com.openssh.ssh-agent", "com.apple.nsurlsession*",
)  # fmt: skip
"""The keychain, the clipboard, and what starts programs outside of the sandbox."""


def profile(*, readable: Iterable[str], writable: Iterable[str]) -> str:
    """The profile in Apple's language; of two rules that apply, the later one counts.

    Args:
        readable: Real paths, beside those of `places`.
        writable: Real paths of folders.
    """
    may_write = [*map(_below, writable), _METAL_CACHE]
    code = {os.path.realpath(each) for each in code_places()}
    may_read = [
        '(literal "/")',  # without it no program starts
        *(_below(each) for each in (*sorted(code), *_READABLE, *system_files(), *readable)),
        *(_one(each) for each in listed_places()),
        *(_one(f"/dev/{each}") for each in _READABLE_DEVICES),
        *may_write,
    ]
    may_write += [_one(f"/dev/{each}") for each in _WRITABLE_DEVICES]
    rules = (
        "(version 1)",
        "(allow default)",
        "(deny network*)",
        "(deny appleevent-send)(deny lsopen)(deny job-creation)(deny user-preference-write)",
        "(deny mach-lookup", *map(_service, _SERVICES), ")",
        "(deny signal)(allow signal (target same-sandbox))",
        "(deny process-info*)(allow process-info* (target same-sandbox))",
        # Whether a file is there, and how large it is, stays open: every program asks.
        "(deny file-read-data)", "(allow file-read-data", *may_read, ")",
        "(deny file-write*)", "(allow file-write*", *may_write, ")",
        "(deny file-write-setugid)", "(deny file-write-flags)",
    )  # fmt: skip
    return "\n".join(rules)


def sandbox_exec(*, readable: Sequence[str], writable: Sequence[str]) -> list[str]:
    """The words before a confined command; empty on other systems and where no profile works."""
    if not _IS_MAC:
        return []
    if _takes_all_away():
        return [_PROGRAM, "-p", profile(readable=readable, writable=writable)]
    network_only = [_PROGRAM, "-p", _NETWORK_ONLY]
    return network_only if _runs(tuple(network_only)) else []


@cache
def _takes_all_away() -> bool:
    """Whether MLX works under the whole profile."""
    with tempfile.TemporaryDirectory(prefix="dynquant-sandbox-") as folder:
        home = os.path.realpath(folder)
        try:
            done = subprocess.run(
                [
                    *(_PROGRAM, "-p", profile(readable=(), writable=[home])),
                    *(sys.executable, "-c", _TRY_MLX),
                ],
                env={
                    "HOME": home,
                    "TMPDIR": home,
                    "PATH": os.environ.get("PATH", os.defpath),
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
                cwd=home,
                capture_output=True,
                timeout=_TIMEOUT_SECS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError):
            return False
    return done.returncode == 0


@cache
def _runs(prefix: tuple[str, ...]) -> bool:
    try:
        done = subprocess.run(
            [*prefix, "/usr/bin/true"], capture_output=True, timeout=_TIMEOUT_SECS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _below(path: str) -> str:
    return f"(subpath {json.dumps(path, ensure_ascii=False)})"


def _one(path: str) -> str:
    return f"(literal {json.dumps(path, ensure_ascii=False)})"


def _service(name: str) -> str:
    if not name.endswith("*"):
        return f"(global-name {json.dumps(name)})"
    begins = name.removesuffix("*").replace(".", r"\.")
    return f'(global-name-regex #"^{begins}")'
