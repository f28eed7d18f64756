"""Logs: one JSON object a line in a file that rotates, and a line for people on a terminal.

No token gets into either: both are written by formatters that redact every text as their last
step, whatever part of a record it came from.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from urllib.parse import quote, unquote

from dynquant.errors import InvalidOptionError

__all__ = [
    "LOG_FILE",
    "Redactor",
    "configure_logging",
    "job_context",
    "log_to_terminal",
    "secrets_in",
]

LOG_FILE = Path("logs", "dynquant.log")
"""Below the runner's home; older ones have `.1` to `.5` behind their name."""

_MAX_FILE_BYTES = 10_000_000
_NUM_OLD_FILES = 5

_REDACTED = "[redacted]"
_MIN_SECRET = 6
"""Shorter ones are ordinary words: replacing them would destroy the log and hide nothing."""

_SECRETS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "DYNQUANT_SPACE_SECRET",
    "DYNQUANT_WEBHOOK_SECRET",
)

_PATTERNS = (
    # Tokens of the Hub; hf_hub_download, hf_transfer and the like have fewer letters in a row.
    (re.compile(r"(?:hf|api_org)_(?:(?:oauth|jwt)_[\w.-]+|[A-Za-z0-9]{9,})"), _REDACTED),
    (
        re.compile(r"(bearer\s+|authorization\W{1,5}basic\s+)[\w.~+/=-]{6,}", re.IGNORECASE),
        rf"\1{_REDACTED}",
    ),
    # A password may hold an `@` itself, so it ends at the last one; the bounds keep this linear.
    (re.compile(r"(://[^\s/:@]{0,200}:)\S{1,1000}(?=@)"), rf"\1{_REDACTED}"),
    (
        re.compile(r"((?:password|passwd|secret|token|signature)=)[^\s&'\"]+", re.IGNORECASE),
        rf"\1{_REDACTED}",
    ),
    # The address of a webhook is a secret: it is all that posting there takes.
    (re.compile(r"(/api/webhooks/|/services/T)[\w/-]+"), rf"\1{_REDACTED}"),
)

_context: ContextVar[tuple[str, str]] = ContextVar("dynquant_job", default=("", ""))
"""Job and step that the thread works on."""


@contextmanager
def job_context(job_id: str, step: str = "") -> Iterator[None]:
    """Every line that this thread logs meanwhile names the job and the step.

    Threads started meanwhile do not inherit it.
    """
    token = _context.set((job_id, step))
    try:
        yield
    finally:
        _context.reset(token)


def configure_logging(
    home: Path,
    *,
    secrets: Iterable[str],
    verbose: bool = False,
    runner_id: str = "",
    file: Path = LOG_FILE,
    all_to_stderr: bool = False,
) -> None:
    """Log to a file below `home`, and to stderr: all on a terminal, else warnings and errors.

    A service's stderr goes to the system's log, which still works when the disk is full.

    Replaces the earlier configuration. Libraries are logged from warnings on.

    Args:
        home: The runner's folder.
        secrets: Texts never to be written: tokens, passwords, URLs with passwords in them.
        verbose: Log details as well.
        runner_id: Named in every line of the file.
        file: Below `home`; two processes must not share one.
        all_to_stderr: Write every line to stderr also where it is no terminal, as in a Job of the
            Hub, whose disk is gone with it.

    Raises:
        InvalidOptionError: The file cannot be written.
    """
    redact = Redactor(secrets)
    path = home / file
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lines = RotatingFileHandler(
            path, maxBytes=_MAX_FILE_BYTES, backupCount=_NUM_OLD_FILES, encoding="utf-8"
        )
    except OSError as error:
        raise InvalidOptionError(
            "The log file cannot be written. Set DYNQUANT_HOME to a folder that you may write."
        ) from error
    lines.setFormatter(_JsonLines(redact, runner_id))
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(_PlainLines(redact))
    if not (all_to_stderr or sys.stderr.isatty()):
        terminal.setLevel(logging.WARNING)
    # Where a line cannot be written, logging would print it to stderr as it is, secrets and all.
    logging.raiseExceptions = False
    logging.basicConfig(level=logging.WARNING, handlers=[lines, terminal], force=True)
    logging.getLogger("dynquant").setLevel(logging.DEBUG if verbose else logging.INFO)


def log_to_terminal(*, secrets: Iterable[str], verbose: bool = False) -> None:
    """Log to stderr alone: a line for each warning and error.

    Replaces what was configured before.

    Args:
        secrets: As for `configure_logging`.
        verbose: Log what happens besides, and tracebacks.
    """
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setFormatter(_PlainLines(Redactor(secrets), with_tracebacks=verbose))
    logging.raiseExceptions = False
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, handlers=[terminal], force=True)


def secrets_in(environment: Mapping[str, str]) -> list[str]:
    """The tokens, secrets and URLs with passwords that `environment` holds."""
    url = environment.get("DYNQUANT_DATABASE_URL", "")
    found = [environment.get(name, "") for name in _SECRETS] + [url if "@" in url else ""]
    return [each for each in found if each.strip()]


class Redactor:
    """Replaces what looks like a token or a password, and the secrets that it knows."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        """Take `secrets`: each a token, a password, or a URL with a password in it."""
        known = {form for secret in secrets for form in _written_forms(_inner(secret.strip()))}
        # The longest first: one may be part of another.
        forms = sorted((form for form in known if len(form) >= _MIN_SECRET), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, forms))) if forms else None

    def __call__(self, text: str) -> str:
        """`text` without them."""
        if self._known is not None:
            text = self._known.sub(_REDACTED, text)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


class _JsonLines(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, redact: Redactor, runner_id: str) -> None:
        super().__init__()
        self._redact = redact
        self._runner_id = runner_id

    def format(self, record: logging.LogRecord) -> str:
        job, step = _job_and_step(record)
        fields = {
            "time": _time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            "runner": self._runner_id,
            "job": job,
            "step": step,
            "exception": self.formatException(record.exc_info) if record.exc_info else "",
        }
        # Redacted before it is JSON, whose escapes would hide a secret.
        return json.dumps({name: self._redact(text) for name, text in fields.items() if text})


class _PlainLines(logging.Formatter):
    """A record as one line to read; its traceback, which the file has, comes on request."""

    def __init__(self, redact: Redactor, *, with_tracebacks: bool = False) -> None:
        super().__init__()
        self._redact = redact
        self._with_tracebacks = with_tracebacks

    def format(self, record: logging.LogRecord) -> str:
        where = " ".join(filter(None, _job_and_step(record)))
        error = record.exc_info[1] if record.exc_info else None
        parts = (
            f"{_time(record).astimezone():%H:%M:%S}",
            f"{record.levelname:7}",
            f"[{where}]" if where else "",
            _message(record),
            f"({type(error).__name__}: {error})" if error is not None else "",
        )
        text = self._redact(" ".join(filter(None, parts)))
        # A text from outside must not move the cursor or begin a line of its own.
        line = "".join(char if char.isprintable() else " " for char in text)
        if self._with_tracebacks and record.exc_info:
            return f"{line}\n{self._redact(self.formatException(record.exc_info))}"
        return line


def _time(record: logging.LogRecord) -> datetime:
    return datetime.fromtimestamp(record.created, UTC)


def _job_and_step(record: logging.LogRecord) -> tuple[str, str]:
    """The job and step that the record names, else those of its thread."""
    job, step = _context.get()
    named = str(getattr(record, "job_id", "") or job)
    return named, step if named == job else ""


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001  an argument's own `__str__` may raise anything
        return f"{record.msg} (its arguments could not be shown: {type(error).__name__})"


def _inner(secret: str) -> str:
    """The password of a URL that has one; anything else is secret as a whole."""
    found = re.search(r"://[^/:@]*:(.+)@", secret)
    return found[1] if found else secret


def _written_forms(secret: str) -> Iterator[str]:
    """`secret` as it may stand in a text: in URLs, in what `repr` and JSON make of it."""
    for form in (secret, unquote(secret)):
        yield form
        yield quote(form, safe="")
        yield repr(form)[1:-1]
        yield json.dumps(form)[1:-1]
