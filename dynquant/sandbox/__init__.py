"""Run a command without what a stranger's model must not reach: `python -m dynquant.sandbox`.

On Linux (`linux.py`) the command gets no socket, reads and writes only where it is told, changes no
permissions, neither sees nor signals other processes, and ends with the process that started it,
together with everything that it started. On a Mac (`macos.py`) `sandbox-exec` takes network, files
and services. A restriction that the system refuses is left out; `dynquant doctor` names it.

Only the standard library is imported: a process with threads may not leave its namespaces.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dynquant.sandbox.macos import sandbox_exec

__all__ = ["clean_environment", "confined", "is_confined"]

MARK = "DYNQUANT_CONFINED"
"""Environment variable of a process that is confined already."""

_INHERITED = (
    *(MARK, "PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LD_PRELOAD", "DYLD_LIBRARY_PATH"),
    # How many cores the operator leaves to us counts in children too.
    *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"),
)


def is_confined() -> bool:
    """Whether this process is confined, and with it all that it starts."""
    return MARK in os.environ


def clean_environment(home: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: ours without tokens, and a home that holds no token."""
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
    readable: Sequence[Path] = (),
    max_data_bytes: int | None = None,
) -> list[str]:
    """The command that runs `command` confined; this very process has to start it.

    It ends like `command`, or with 128 and the number of the signal that ended that. SIGTERM ends
    it at once.

    Args:
        command: Program and arguments.
        writable: Folders that it may read and write in.
        readable: Folders and files that it may read, beside those that Python, the compilers and
            the system's libraries are made of.
        max_data_bytes: Memory that it may ask for; macOS knows no such limit.
    """
    if is_confined():
        return [*command]  # what we may not do, our children may not do either
    places = {
        "readable": [os.path.realpath(each) for each in readable],
        "writable": [os.path.realpath(each) for each in writable],
    }
    terms = {"parent": os.getpid(), "max_data_bytes": max_data_bytes, **places}
    inner = [sys.executable, "-m", "dynquant.sandbox", json.dumps(terms), *command]
    return [*sandbox_exec(**places), *inner]
