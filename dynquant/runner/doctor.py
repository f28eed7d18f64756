"""Checks this machine for all that a runner needs: one finding per check."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import httpx2
import psutil

from dynquant.crash_report import report_crash
from dynquant.errors import DynquantError, missing_driver
from dynquant.hub.accounts import WRITE
from dynquant.hub.client_environment import check_connection, check_token, proxy_in_use
from dynquant.hub.publishing import HubPublisher
from dynquant.jobs.board import DatabaseBoard
from dynquant.rented.budget import spent_micro_usd
from dynquant.rented.hardware import dollars
from dynquant.report.numbers import size
from dynquant.runner.gpu import Gpu, gpu_problem, gpu_sentence, gpus, kernel_problem
from dynquant.runner.machine import usable_memory_bytes
from dynquant.runner.reach import reach, statement
from dynquant.sandbox import clean_environment
from dynquant.settings import Settings, user_name

__all__ = ["Finding", "examine"]

_MIN_FREE_BYTES = 20 * 10**9
"""For source and result of an 8 B model."""

_NEEDED = frozenset({"repo.content.read", WRITE})
"""Permissions of a token that a runner needs in one namespace, by the Hub's names."""

_TIMEOUT_SECS = 20.0
_UTF8 = "utf-8"
_ASK_MLX = (
    "import json, dynquant.quant.mlx as backend, mlx.core as mx; device = mx.default_device();"
    "print(json.dumps([str(device.type).split('.')[-1], mx.__version__,"
    " backend.slow_blas_sentence()]))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check: its subject, whether it passed, and what was found or is to do."""

    what: str
    good: bool
    sentence: str


def examine(environment: Mapping[str, str]) -> list[Finding]:
    """Check all that a runner needs; changes nothing."""
    system = f"{platform.python_version()} on {platform.platform()}."
    python = Finding(what="Python", good=True, sentence=system)
    try:
        settings = Settings.from_environment(environment)
    except DynquantError as error:
        return [python, Finding(what="settings", good=False, sentence=str(error))]
    checks: dict[str, Callable[[], str]] = {
        "settings": lambda: f"This runner is called '{settings.runner_id}'.",
        "home": lambda: _home(settings.home),
        "characters": _characters,
        "MLX": lambda: _mlx(settings.home),
        "images": _images,
        "OpenBLAS": lambda: _openblas(settings.home),
        "sandbox": _sandbox,
        "memory": lambda: _memory(settings),
        "disk": lambda: _disk(settings.home),
        "database": lambda: _database(settings),
        "connection": _connection,
        "Hub token": _token,
    }
    if found := gpus():
        checks["GPU"] = lambda: _gpu(found, settings.home)
    if settings.inbox_repo is not None:
        repo = settings.inbox_repo
        checks["inbox"] = lambda: _inbox(repo)
    if settings.space_url is not None:
        url = settings.space_url
        checks["Space"] = lambda: _space(url)
    if settings.hub_jobs_micro_usd_per_day is not None:
        checks["Hub Jobs"] = lambda: _hub_jobs(settings, environment)
    return [python, *(_checked(what, check) for what, check in checks.items())]


class _MissingError(Exception):
    """A check failed; the message says what to do."""


def _checked(what: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, good=True, sentence=check())
    except (DynquantError, _MissingError) as error:
        return Finding(what=what, good=False, sentence=str(error))
    except Exception as error:  # noqa: BLE001  the other checks still run
        return Finding(what=what, good=False, sentence=report_crash(error, words=["doctor"]))


def _home(home: Path) -> str:
    existing = next(path for path in (home, *home.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise _MissingError(
            "The folder of DYNQUANT_HOME (~/.dynquant if unset) cannot be written. Set it to "
            "another one, or change its permissions."
        )
    try:
        tempfile.gettempdir()
    except OSError as error:
        raise _MissingError(
            "There is no folder for temporary files that can be written. Free some space, or set "
            "TMPDIR to a writable folder."
        ) from error
    return f"It can be written; jobs of this machine are those of '{user_name()}'."


def _characters() -> str:
    names, shown = sys.getfilesystemencoding(), sys.stdout.encoding or ""
    if names != _UTF8:
        raise _MissingError(
            f"This system names files in '{names}', so names with other characters are refused. "
            "Set LC_ALL to a locale with UTF-8, such as C.UTF-8."
        )
    if shown.lower() != _UTF8:
        return f"Characters that '{shown}' does not have are shown as similar characters."
    return "Files and output are in UTF-8."


@cache
def _ask_mlx(home: Path) -> tuple[str, str, str | None]:
    """MLX's device and version, and a sentence if its CPU code multiplies slowly."""
    # In a child process: a broken MLX may crash the process that imports it.
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
            missing_driver(child.stderr)
            or "MLX cannot be imported. Install it with 'pip install \"dynquant[mlx]\"', on a Mac "
            "with Apple silicon or on Linux; with an NVIDIA GPU, 'dynquant[cuda]'."
        )
    device, version, slow_blas = json.loads(child.stdout.splitlines()[-1])
    return device, version, slow_blas


def _mlx(home: Path) -> str:
    device, version, _ = _ask_mlx(home)
    slow = "" if device == "gpu" else ", without a GPU: converting is slow"
    return f"MLX {version} on the {device}{slow}."


def _gpu(found: Sequence[Gpu], home: Path) -> str:
    device, _, _ = _ask_mlx(home)
    problem = gpu_problem(found[0], mlx_device=device) or kernel_problem(home)
    if problem is not None:
        raise _MissingError(problem)
    return gpu_sentence(found)


def _images() -> str:
    if find_spec("mlx_vlm") is None:
        return (
            "Without mlx-vlm, models that see or hear become text models. 'pip install "
            '"dynquant[vlm]"\' keeps their towers.'
        )
    return f"mlx-vlm {version('mlx-vlm')} keeps the towers of models that see or hear."


def _openblas(home: Path) -> str:
    device, _, slow_blas = _ask_mlx(home)
    if slow_blas is not None:
        raise _MissingError(slow_blas)
    if device == "gpu" or not sys.platform.startswith("linux"):
        return "It is not needed here."
    return "MLX multiplies with it on the CPU."


def _sandbox() -> str:
    found = statement(reached := reach())
    if {"connect", "read"} & set(reached):
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
        unread = board.quarantined()
    finally:
        board.close()
    kind = settings.database_url.partition(":")[0]
    found = f"{kind} answers; {alive} runner{'s' * (alive != 1)} at work."
    if unread:
        found += (
            f" Entries of the queue that could not be read, and were set aside: {len(unread)}; the "
            f"last one was job '{unread[-1].job_id}': {unread[-1].sentence}"
        )
    return found


def _connection() -> str:
    check_connection()
    proxy = proxy_in_use()
    if proxy is None:
        return "Requests go to the Hub directly, without a proxy."
    return f"Requests go to the Hub through the proxy that {proxy} names."


def _token() -> str:
    check_token()
    account = HubPublisher().account()
    if not account.may_write:
        raise _MissingError(
            f"The token of '{account.name}' may only read. Set HF_TOKEN to one that may write to "
            "the namespace to publish to, and to no other."
        )
    if account.role != "fineGrained":
        wide = "; a fine-grained token for one namespace is safer" * (account.role == "write")
        return f"'{account.name}' may publish to: {', '.join(account.namespaces)}{wide}."
    writable = [name for name in account.namespaces if account.may_write_to(name)]
    if not writable:
        raise _MissingError(
            f"The fine-grained token of '{account.name}' may write to no namespace. Give it read "
            "and write access to the contents of all repos of the namespace to publish to."
        )
    more = sorted({each for scope in account.scopes.values() for each in scope} - _NEEDED)
    wide = f"; it has permissions that a runner does not need: {', '.join(more)}" if more else ""
    return f"'{account.name}' may publish to: {', '.join(writable)}{wide}."


def _inbox(repo: str) -> str:
    from dynquant.hub.inbox import HubInbox

    waiting = len(HubInbox(repo).pending())
    return f"'{repo}' answers; it has {waiting} request{'s' * (waiting != 1)}."


def _hub_jobs(settings: Settings, environment: Mapping[str, str]) -> str:
    from dynquant.hub.jobs import HubJobs
    from dynquant.runner.elastic import recent, runner_labels

    account = HubPublisher().account()
    namespace = settings.hub_jobs_namespace or account.name
    account.require_may_run_jobs(namespace)
    jobs = recent(HubJobs(), namespace, runner_labels(environment))
    running = [job.url for job in jobs if not job.stage.is_over]
    limit = settings.hub_jobs_micro_usd_per_day
    assert limit is not None
    now = f"running: {', '.join(running)}" if running else "none runs"
    return (
        f"'{namespace}' may start Jobs; {len(jobs)} in 24 hours, for at most "
        f"{dollars(spent_micro_usd(jobs))} of {dollars(limit)}; {now}."
    )


def _space(url: str) -> str:
    check_connection()
    try:
        status = httpx2.get(url, timeout=_TIMEOUT_SECS, follow_redirects=True).status_code
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _MissingError(
            f"{url} does not answer ({type(error).__name__}). Check DYNQUANT_SPACE_URL, and "
            "whether the Space is running."
        ) from error
    if status >= 500:  # noqa: PLR2004
        raise _MissingError(f"{url} answers with status {status}. Look at the Space's log.")
    return f"{url} answers."
