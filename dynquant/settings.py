"""The environment, read once into one frozen record."""

from __future__ import annotations

import getpass
import math
import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from dynquant.errors import InvalidOptionError

__all__ = ["ACCOUNT", "Settings", "user_name"]

_PREFIX = "DYNQUANT_"
_GB = 10**9
_DEFAULT_HOME = "~/.dynquant"
_MAX_CONCURRENCY = 64
_MIN_SECRET = 16
_MAX_USER_CHARS = 64
_HUB_CACHES = ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")
"""Any of them tells huggingface_hub where to put what it downloads."""

ACCOUNT = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")
"""Name of an account or an organization on the Hub."""

_RUNNER_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
_SCHEMES = ("sqlite", "postgresql", "postgres")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How this machine takes part. `repr` shows no secret.

    Attributes:
        home: Folder for the database, logs and what is being made.
        database_url: `sqlite:///…` or `postgresql://…`; may hold a password.
        runner_id: Name of this runner, the same after every start and unlike any other's.
        concurrency: Jobs that this runner takes at once.
        daily_limit: Jobs that one requester may ask for in 24 hours; None for any number.
        memory_bytes: Memory for jobs, if not all that the machine has.
        cache_dir: Where downloaded models are kept; None for huggingface_hub's own place, which
            others use too, so that it has no bound.
        cache_bytes: Most that downloaded models may take; None for no bound.
        local_texts: Whether jobs may name text files of this machine; else only datasets.
        watch_config: Rules of the watcher; None for no watcher.
        watch_cron: When it looks for new models.
        inbox_repo: Private dataset repo from which requests are taken.
        publish_to: Account or organization that models are published to unless a job says another.
        inbox_destinations: Other namespaces and name templates that requests by mail may name.
        inbox_private_sources: Private repos of the operator that requests by mail may name.
        space_url: Space that shows this runner's board.
        space_secret: Secret by which the Space recognizes the runner.
        webhook_secret: Secret that the Hub sends with each webhook.
    """

    home: Path
    database_url: str = field(repr=False)
    runner_id: str
    concurrency: int = 1
    daily_limit: int | None = None
    memory_bytes: int | None = None
    cache_dir: Path | None = None
    cache_bytes: int | None = None
    local_texts: bool = False
    watch_config: Path | None = None
    watch_cron: str = "*/15 * * * *"
    inbox_repo: str | None = None
    publish_to: str | None = None
    inbox_destinations: tuple[str, ...] = ()
    inbox_private_sources: tuple[str, ...] = ()
    space_url: str | None = None
    space_secret: str | None = field(default=None, repr=False)
    webhook_secret: str | None = field(default=None, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """The settings that `environment` asks for; empty variables count as absent.

        Raises:
            InvalidOptionError: A variable's value makes no sense; names the variable.
        """
        read = _Reader({name: value.strip() for name, value in environment.items()})
        home = read("HOME", _home, default=_DEFAULT_HOME)
        settings = cls(
            home=home,
            database_url=read(
                "DATABASE_URL", _database_url, default=_sqlite_url(home / "jobs.sqlite")
            ),
            runner_id=read("RUNNER_ID", _runner_id, default=_host_name()),
            concurrency=read("CONCURRENCY", _concurrency, default="1"),
            daily_limit=read.optional("DAILY_LIMIT", _count),
            memory_bytes=read.optional("MEMORY_GB", _gigabytes),
            cache_dir=read.optional("CACHE_DIR", _path),
            cache_bytes=read.optional("CACHE_GB", _gigabytes),
            local_texts=read("LOCAL_TEXTS", _flag, default="false"),
            watch_config=read.optional("WATCH_CONFIG", _path),
            watch_cron=read("WATCH_CRON", str, default="*/15 * * * *"),
            inbox_repo=read.optional("INBOX_REPO", _repo_id),
            publish_to=read.optional("PUBLISH_TO", _account),
            inbox_destinations=read.optional("INBOX_DESTINATIONS", _listed) or (),
            inbox_private_sources=read.optional("INBOX_PRIVATE_SOURCES", _repo_ids) or (),
            space_url=read.optional("SPACE_URL", _space_url),
            space_secret=read.optional("SPACE_SECRET", _secret),
            webhook_secret=read.optional("WEBHOOK_SECRET", _secret),
        )
        is_homeless = not _has_home() and not any(map(read.environment.get, _HUB_CACHES))
        if settings.cache_dir is None and (settings.cache_bytes or is_homeless):
            settings = replace(settings, cache_dir=home / "cache")
        if settings.space_url and not settings.space_secret:
            raise InvalidOptionError(
                "DYNQUANT_SPACE_URL needs DYNQUANT_SPACE_SECRET as well: set it to the secret "
                "that the Space has, or unset both."
            )
        return settings


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads variables by their name after the prefix."""

    environment: Mapping[str, str]

    def __call__(self, name: str, parse: Callable[[str], T], *, default: str) -> T:
        return _parsed(name, self.environment.get(_PREFIX + name) or default, parse)

    def optional(self, name: str, parse: Callable[[str], T]) -> T | None:
        text = self.environment.get(_PREFIX + name)
        return _parsed(name, text, parse) if text else None


def _parsed(name: str, text: str, parse: Callable[[str], T]) -> T:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidOptionError(f"{_PREFIX}{name} must be text in UTF-8.") from error
    try:
        return parse(text)
    except ValueError as error:
        # The message does not repeat the value: it may be a secret.
        raise InvalidOptionError(f"{_PREFIX}{name} {error}.") from error


def user_name() -> str:
    """Name of the user on this machine; also where the user id has none, as in containers.

    Printable, and of bounded length: variables such as USER come first, and may hold anything.
    """
    try:
        name = getpass.getuser()
    except (KeyError, OSError, ImportError):  # what it raises differs between Pythons
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
