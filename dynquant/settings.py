"""The settings of this machine, read once from the environment."""

from __future__ import annotations

import difflib
import getpass
import math
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from dynquant.errors import InvalidOptionError

__all__ = ["ACCOUNT", "Settings", "unknown_variables", "user_name"]

_PREFIX = "DYNQUANT_"
_GB = 10**9
_DEFAULT_HOME = "~/.dynquant"
_MAX_CONCURRENCY = 64
_MIN_SECRET = 16
_MAX_USER_CHARS = 64
_ELSEWHERE = frozenset(
    {"OPERATORS", "CONFINED"}
    | {"AXE", "CHAOS", "FAMILIES", "HARDEN", "UPDATE_FAMILIES", "UPDATE_GOLDEN"}
)
"""Variables, without the prefix, that the pages, the sandbox and the tests read."""
_LIKENESS = 0.7
"""Least similarity of a misspelt name, as `difflib` counts it."""
_HUB_CACHES = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
"""Each of them sets the download folder of huggingface_hub."""

ACCOUNT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
"""Name of an account or an organization on the Hub."""

_RUNNER_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_SCHEMES = ("sqlite", "postgresql", "postgres")


def user_name() -> str:
    """Name of the user on this machine, or `uid-…` where the user id has no name.

    Printable, and of limited length, since variables such as USER have precedence and any content.
    """
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # differs between versions of Python
        name = ""
    printable = "".join(char for char in name if char.isprintable()).strip()
    return printable[:_MAX_USER_CHARS] or f"uid-{os.getuid()}"


def _home(text: str) -> Path:
    if text == _DEFAULT_HOME and not _has_home():
        raise ValueError(
            "must be set to a folder that you may write: HOME is not set, and this user has no "
            "home folder"
        )
    return _path(text)


def _sqlite_url(path: Path) -> str:
    """The file as a URL, in which `?` would begin options and `%` an encoded character."""
    return f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}"


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError("begins with '~', and that user has no home folder here") from error


def _has_home() -> bool:
    try:
        return Path.home().is_absolute()
    except RuntimeError:
        return False


def _host_name() -> str:
    """The machine's name as a runner id."""
    first = socket.gethostname().split(".", maxsplit=1)[0].lower()
    return re.sub(r"[^a-z0-9]+", "-", first)[:64].strip("-") or "runner"


def _runner_id(text: str) -> str:
    if not _RUNNER_ID.fullmatch(text):
        raise ValueError("must be 1 to 64 of a-z, 0-9, '.', '_' and '-', such as 'mac-studio'")
    return text


def _database_url(text: str) -> str:
    scheme, colon, rest = text.partition("://")
    is_sqlite = scheme == "sqlite"
    if scheme not in _SCHEMES or not colon or (is_sqlite and not rest.strip("/")):
        raise ValueError(
            "must look like 'sqlite:////folder/jobs.sqlite' or "
            "'postgresql://user:password@host:5432/database'"
        )
    if not is_sqlite and not _url_parts(text).path.strip("/"):
        raise ValueError("must end in the name of a database: 'postgresql://host:5432/database'")
    return text


def _url_parts(text: str) -> SplitResult:
    try:
        return urlsplit(text)
    except ValueError as error:
        raise ValueError("must be a web address; its host cannot be read") from error


def _concurrency(text: str) -> int:
    number = _count(text)
    if number > _MAX_CONCURRENCY:
        raise ValueError(f"must be at most {_MAX_CONCURRENCY}")
    return number


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError("must be a whole number above 0")
    return int(text)


def _gigabytes(text: str) -> int:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError("must be a number of gigabytes above 0, such as 64")
    return round(number * _GB)


def _dollars(text: str) -> int:
    """Millionths of a dollar."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError("must be a number of dollars above 0, such as 5")
    return int(number * 10**6)


def _flag(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError("must be true or false")
    return text.lower() == "true"


def _repo_id(text: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text, re.ASCII):
        raise ValueError("must be a repo id such as 'your-name/dynquant-inbox'")
    return text


def _listed(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))


def _repo_ids(text: str) -> tuple[str, ...]:
    return tuple(map(_repo_id, _listed(text)))


def _account(text: str) -> str:
    if not ACCOUNT.fullmatch(text):
        raise ValueError("must be one account or organization")
    return text


def _space_url(text: str) -> str:
    parts = _url_parts(text)
    is_local = parts.hostname in {"localhost", "127.0.0.1"}
    if not parts.hostname or not (parts.scheme == "https" or (parts.scheme == "http" and is_local)):
        raise ValueError("must begin with https://, since a secret is sent there")
    return text.rstrip("/")


def _secret(text: str) -> str:
    if len(text) < _MIN_SECRET or not text.isascii() or not text.isprintable():
        raise ValueError(f"must be at least {_MIN_SECRET} printable ASCII characters")
    return text


def _variable(
    parse: Callable[[str], Any], *, default: Any = None, name: str = "", is_secret: bool = False
) -> Any:
    """A field that is read from the variable of its name, or of `name` after the prefix."""
    return field(default=default, repr=not is_secret, metadata={"parse": parse, "name": name})


def _read(
    environment: Mapping[str, str], name: str, parse: Callable[[str], Any], *, default: str = ""
) -> Any:
    """The value of a variable; None if it is absent and has no default."""
    text = environment.get(_PREFIX + name) or default
    if not text:
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidOptionError(f"{_PREFIX}{name} must be text in UTF-8.") from error
    try:
        return parse(text)
    except ValueError as error:
        # The message does not contain the value, which may be a secret.
        raise InvalidOptionError(f"{_PREFIX}{name} {error}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of this machine. `repr` shows no secret.

    Attributes:
        home: Folder for the database, logs and unfinished models.
        database_url: `sqlite:///…` or `postgresql://…`; may hold a password.
        runner_id: Name of this runner, unique, and the same after every start.
        concurrency: Jobs that this runner does at the same time.
        daily_limit: Jobs that one requester may ask for in 24 hours; None for any number.
        memory_bytes: Memory for jobs; None for all memory of the machine.
        cache_dir: Folder for downloaded models; None for huggingface_hub's own, which other
            programs share, so that dynquant never limits it.
        cache_bytes: Limit for downloaded models; None for no limit.
        local_texts: Whether jobs may name text files of this machine; else only datasets.
        watch_config: Rules of the watcher; None for no watcher.
        watch_cron: Schedule of the watcher's sweeps.
        inbox_repo: Private dataset repo with the requests of a Space.
        publish_to: Account or organization to publish to, unless a job names another.
        inbox_destinations: Further namespaces and name templates that inbox requests may name.
        inbox_private_sources: Private repos of the operator that inbox requests may name.
        space_url: Space that shows this runner's board.
        space_secret: Secret by which the Space recognizes the runner.
        webhook_secret: Secret that the Hub sends with each webhook.
        hub_jobs_source: Release or commit of dynquant that Jobs of the Hub install; None for the
            one that runs here.
        hub_jobs_flavor: Machine of elastic runners; `auto` for the cheapest that is large enough.
        hub_jobs_namespace: Account that pays for elastic runners; None for the token's.
        hub_jobs_at_once: Most elastic runners at one time.
        hub_jobs_micro_usd_per_day: Most that elastic runners may cost in 24 hours, in millionths of
            a dollar; None for no elastic runners.
    """

    home: Path
    database_url: str = field(repr=False)
    runner_id: str
    concurrency: int = _variable(_concurrency, default=1)
    daily_limit: int | None = _variable(_count)
    memory_bytes: int | None = _variable(_gigabytes, name="MEMORY_GB")
    cache_dir: Path | None = _variable(_path)
    cache_bytes: int | None = _variable(_gigabytes, name="CACHE_GB")
    local_texts: bool = _variable(_flag, default=False)
    watch_config: Path | None = _variable(_path)
    watch_cron: str = _variable(str, default="*/15 * * * *")
    inbox_repo: str | None = _variable(_repo_id)
    publish_to: str | None = _variable(_account)
    inbox_destinations: tuple[str, ...] = _variable(_listed, default=())
    inbox_private_sources: tuple[str, ...] = _variable(_repo_ids, default=())
    space_url: str | None = _variable(_space_url)
    space_secret: str | None = _variable(_secret, is_secret=True)
    webhook_secret: str | None = _variable(_secret, is_secret=True)
    hub_jobs_source: str | None = _variable(str)
    hub_jobs_flavor: str = _variable(str, default="auto")
    hub_jobs_namespace: str | None = _variable(_account)
    hub_jobs_at_once: int = _variable(_count, default=1)
    hub_jobs_micro_usd_per_day: int | None = _variable(_dollars, name="HUB_JOBS_DOLLARS_PER_DAY")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """The settings that `environment` asks for; empty variables count as absent.

        Raises:
            InvalidOptionError: A variable has an invalid value; names the variable.
        """
        given = {name: value.strip() for name, value in environment.items()}
        home = _read(given, "HOME", _home, default=_DEFAULT_HOME)
        url = _read(given, "DATABASE_URL", _database_url, default=_sqlite_url(home / "jobs.sqlite"))
        runner_id = _read(given, "RUNNER_ID", _runner_id, default=_host_name())
        others = {
            each.name: _read(
                given, each.metadata["name"] or each.name.upper(), each.metadata["parse"]
            )
            for each in fields(cls)
            if each.metadata
        }
        chosen = {name: value for name, value in others.items() if value is not None}
        settings = cls(home=home, database_url=url, runner_id=runner_id, **chosen)
        is_homeless = not _has_home() and not any(map(given.get, _HUB_CACHES))
        if settings.cache_dir is None and (settings.cache_bytes or is_homeless):
            settings = replace(settings, cache_dir=home / "cache")
        if settings.space_url and not settings.space_secret:
            raise InvalidOptionError(
                "DYNQUANT_SPACE_URL needs DYNQUANT_SPACE_SECRET as well: set it to the secret "
                "that the Space has, or unset both."
            )
        return settings


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence on each variable with our prefix that dynquant does not know."""
    read = {each.metadata.get("name") or each.name.upper() for each in fields(Settings)}
    known, sentences = read | _ELSEWHERE, []
    for name in sorted(environment):
        given = name.removeprefix(_PREFIX)
        if given == name or given in known:
            continue
        meant = difflib.get_close_matches(given, known, n=1, cutoff=_LIKENESS)
        hint = f"Did you mean {_PREFIX}{meant[0]}?" if meant else "docs/runner.md has a list."
        sentences.append(f"dynquant does not know the variable {name}. {hint}")
    return sentences
