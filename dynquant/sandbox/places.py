"""Places that every confined process may read: Python, compilers, libraries, facts of the system.

A list of what may be read needs no knowledge of where people keep their keys.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["code_places", "listed_places", "system_files"]

_PREFIXES = ("/", "/usr", "/usr/local", "/opt/homebrew", "/home/linuxbrew/.linuxbrew")
_IN_A_PREFIX = (
    "bin", "sbin", "lib", "lib32", "lib64", "libx32", "libexec", "include", "share", "pyvenv.cfg",
    "*-linux-gnu*",  # a compiler's libraries and headers, as of conda
    "Python*", "Resources", "Frameworks",  # of a Python on a Mac
)  # fmt: skip
"""Of an installation; `etc`, `var` and `src` may hold settings and secrets of services."""

_MORE_CODE = (
    "/usr/local/cuda*", "/usr/local/nvidia", "/opt/cuda*", "/opt/nvidia", "/opt/rh",
    "/nix/store", "/gnu/store", "/run/opengl-driver*",
    "/opt/homebrew/Cellar", "/opt/homebrew/opt",
    "/home/linuxbrew/.linuxbrew/Cellar", "/home/linuxbrew/.linuxbrew/opt",
    "/System", "/Library/Apple", "/Library/Developer", "/Library/Frameworks", "/Library/GPUBundles",
    "/Applications/Xcode*.app",
)  # fmt: skip

_SYSTEM_FILES = (
    "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "ld.so.preload", "localtime", "timezone",
    "nsswitch.conf", "passwd", "group", "locale.alias", "mime.types", "os-release",
    "ssl/openssl.cnf", "pki/tls/openssl.cnf", "pki/tls/openssl.d", "crypto-policies",
    "OpenCL", "vulkan", "nvidia", "services", "protocols",
)  # fmt: skip
"""In `/etc`."""


def code_places() -> Iterator[str]:
    """Files and folders of programs and libraries, as far as there are any; also to execute."""
    prefixes = {*_PREFIXES, sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}
    patterns = [f"{prefix}/{name}" for prefix in sorted(prefixes) for name in _IN_A_PREFIX]
    found = {str(each) for pattern in (*patterns, *_MORE_CODE) for each in _matches(pattern)}
    for variable in ("LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH"):
        found.update(filter(os.path.exists, os.environ.get(variable, "").split(os.pathsep)))
    # Folders that packages were installed to. Others on `sys.path` may be a person's home.
    found.update(each for each in sys.path if each and any(Path(each).glob("*.dist-info")))
    found.add(str(_package()))
    yield from sorted(found)


def listed_places() -> Iterator[str]:
    """Folders whose names of files may be read, so that dynquant is found by its import."""
    yield str(_package().parent)


def system_files() -> Iterator[str]:
    """Settings of the system that programs read when they start."""
    for root in ("/etc", "/private/etc"):
        yield from filter(os.path.exists, (f"{root}/{name}" for name in _SYSTEM_FILES))


def _package() -> Path:
    return Path(__file__).resolve().parents[1]


def _matches(pattern: str) -> Iterator[Path]:
    return Path("/").glob(os.path.normpath(pattern).lstrip("/"))
