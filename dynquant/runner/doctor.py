"""What a runner on this machine has, and what is missing: one finding each."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from dynquant.confine import clean_environment
from dynquant.core.figures import size
from dynquant.errors import DynquantError
from dynquant.hub.accounts import WRITE
from dynquant.hub.publishing import HubPublisher
from dynquant.jobs.board import DatabaseBoard
from dynquant.runner.machine import usable_memory_bytes
from dynquant.runner.sandbox import reach, statement
from dynquant.settings import Settings

__all__ = ["Finding", "examine"]

_MIN_PYTHON = (3, 11)
_MIN_FREE_BYTES = 20 * 10**9
"""Source and result of an 8 B model."""

_NEEDED = frozenset({"repo.content.read", WRITE})
"""Permissions of a token, as the Hub calls them, that a runner needs in one namespace."""

_TIMEOUT_SECS = 20.0
_ASK_MLX = (
    "import json, dynquant.mlx_backend as backend, mlx.core as mx; device = mx.default_device();"
    "print(json.dumps([str(device.type).split('.')[-1], mx.__version__,"
    " backend.slow_blas_sentence()]))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: what was looked at, whether it is good, and what was found or is to be done."""

    what: str
    good: bool
    sentence: str


def examine(environment: Mapping[str, str]) -> list[Finding]:
    """Look at everything that a runner needs; nothing is changed."""
    try:
        settings = Settings.from_environment(environment)
    except DynquantError as error:
        return [_python(), Finding(what="settings", good=False, sentence=str(error))]
    checks: dict[str, Callable[[], str]] = {
        "settings": lambda: f"This runner is called '{settings.runner_id}'.",
        "MLX": lambda: _mlx(settings.home),
        "sandbox": _sandbox,
        "memory": lambda: _memory(settings),
        "disk": lambda: _disk(settings.home),
        "database": lambda: _database(settings),
        "Hub token": _token,
    }
    if settings.inbox_repo is not None:
        repo = settings.inbox_repo
        checks["inbox"] = lambda: _inbox(repo)
    if settings.space_url is not None:
        url = settings.space_url
        checks["Space"] = lambda: _space(url)
    return [_python(), *(_checked(what, check) for what, check in checks.items())]


class _MissingError(Exception):
    """Something is not as it should be; the message says what to do."""


def _checked(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, good=True, sentence=check())
    except (DynquantError, _MissingError) as error:
        return Finding(what=what, good=False, sentence=str(error))


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info < _MIN_PYTHON:
        sentence = f"dynquant needs Python 3.11 or newer, and this is {version}."
        return Finding(what="Python", good=False, sentence=sentence)
    return Finding(what="Python", good=True, sentence=f"{version} on {platform.platform()}.")


def _mlx(home: Path) -> str:
    # In a process of its own: a broken MLX may end the process that imports it.
    child = subprocess.run(
        [sys.executable, "-c", _ASK_MLX],
        env=clean_environment(home, {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if child.returncode != 0:
        raise _MissingError(
            "MLX cannot be imported. Install it with 'pip install \"dynquant[mlx]\"', on a Mac "
            "with Apple silicon or on Linux."
        )
    device, version, slow_blas = json.loads(child.stdout.splitlines()[-1])
    slow = "" if device == "gpu" else ", without a GPU: converting is slow"
    return f"MLX {version} on the {device}{slow}.{f' {slow_blas}' if slow_blas else ''}"


def _sandbox() -> str:
    found = statement(reached := reach())
    if "connect" in reached:
        raise _MissingError(found)
    return found


def _memory(settings: Settings) -> str:
    total = psutil.virtual_memory().total
    usable = settings.memory_bytes or usable_memory_bytes(total)
    return f"{size(total)}, of which jobs may use {size(usable)}."


def _disk(home: Path) -> str:
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < _MIN_FREE_BYTES:
        raise _MissingError(
            f"{size(free)} free, which is little: an 8 B model takes about "
            f"{size(_MIN_FREE_BYTES)}. Free some space, or set DYNQUANT_HOME and "
            "DYNQUANT_CACHE_DIR to a larger disk."
        )
    return f"{size(free)} free."


def _database(settings: Settings) -> str:
    board = DatabaseBoard(settings.database_url)
    try:
        alive = sum(each.is_alive for each in board.runners())
        aside = board.set_aside()
    finally:
        board.close()
    kind = settings.database_url.partition(":")[0]
    found = f"{kind} answers; {alive} runner{'s' * (alive != 1)} at work."
    if aside:
        found += (
            f" Entries of the queue that could not be read, and were set aside: {len(aside)}; the "
            f"last one was job '{aside[-1].job_id}': {aside[-1].sentence}"
        )
    return found


def _token() -> str:
    account = HubPublisher().account()
    if not account.may_write:
        raise _MissingError(
            f"The token of '{account.name}' may only read. Set HF_TOKEN to one that may write to "
            "the namespace to publish to, and to nothing else."
        )
    if account.role != "fineGrained":
        wide = "; a fine-grained one for one namespace would be safer" * (account.role == "write")
        return f"'{account.name}' may publish to: {', '.join(account.namespaces)}{wide}."
    writable = [name for name in account.namespaces if account.may_write_to(name)]
    if not writable:
        raise _MissingError(
            f"The fine-grained token of '{account.name}' may write to no namespace. Give it read "
            "and write access to the contents of all repos of the one to publish to."
        )
    more = sorted({each for scope in account.scopes.values() for each in scope} - _NEEDED)
    wide = f"; it may also do what no runner needs: {', '.join(more)}" if more else ""
    return f"'{account.name}' may publish to: {', '.join(writable)}{wide}."


def _inbox(repo: str) -> str:
    from dynquant.hub.inbox import HubInbox

    waiting = len(HubInbox(repo).pending())
    return f"'{repo}' answers; {waiting} request{'s' * (waiting != 1)} looked at."


def _space(url: str) -> str:
    try:
        status = requests.get(url, timeout=_TIMEOUT_SECS).status_code
    except requests.RequestException as error:
        raise _MissingError(
            f"{url} does not answer ({type(error).__name__}). Check DYNQUANT_SPACE_URL, and "
            "whether the Space is running."
        ) from error
    if status >= 500:  # noqa: PLR2004
        raise _MissingError(f"{url} answers with status {status}. Look at the Space's log.")
    return f"{url} answers."
