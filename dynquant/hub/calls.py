"""Calls to the Hub: with a timeout, retried where that helps, their errors translated into ours.

Most calls of huggingface_hub neither retry nor time out by themselves.
"""

from __future__ import annotations

import errno
import json
import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import httpx2
from huggingface_hub import get_session
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)
from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined]

from dynquant.errors import (
    CardError,
    DynquantError,
    HubQuotaError,
    HubUnavailableError,
    InvalidModelError,
    ModelNotFoundError,
    Reason,
    RequestError,
    StorageFullError,
)
from dynquant.hub.client_environment import (
    check_connection,
    is_bearer,
    proxy_for,
    token_problem,
)

__all__ = ["NUM_DOWNLOAD_TRIES", "TIMEOUT_SECS", "HubCaller"]

T = TypeVar("T")

TIMEOUT_SECS = 30.0
"""How long one request may take to send its next bytes."""

_MAX_WAIT_SECS = 30.0
"""A longer pause that the Hub asks for is not waited for: the call fails and names the pause."""

_NUM_TRIES = 3
NUM_DOWNLOAD_TRIES = 2
"""Fewer for downloads: the client itself retries most of their requests for some 20 seconds."""

_BAD_REQUEST = 400
"""Retried too: a proxy answers so when a request was damaged on its way."""
_UNAUTHORIZED = 401
_PAYMENT_REQUIRED = 402
_FORBIDDEN = 403
_NOT_FOUND = 404
_TOO_LARGE = 413
_TOO_MANY_REQUESTS = 429
_TRANSIENT_STATUS = frozenset({408, _TOO_MANY_REQUESTS, 500, 502, 503, 504})
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NOT_WRITABLE = frozenset(
    {
        errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.EISDIR,
        errno.ELOOP, errno.ENAMETOOLONG,
    }
)  # fmt: skip

_BAD_CARD = "Invalid metadata in README.md.\n"
"""First line of the client's ValueError about a card; the Hub's findings follow."""

_UNTRUSTED = "CERTIFICATE_VERIFY_FAILED"
"""In an OpenSSL message: the certificate is signed by no known authority."""

_UNREACHABLE = (
    "The Hub cannot be reached. Check the network connection, and HF_ENDPOINT if it is set, and "
    "try again."
)
_IN_ITS_PLACE = (
    "Something between this machine and the Hub answers in its place. Check the proxy settings, "
    "and HF_ENDPOINT if it is set."
)

# Raised within the client when an answer does not have the Hub's format.
_GARBLED = (AttributeError, LookupError, NameError, TypeError, ValueError)

# Raised by huggingface_hub, httpx2 and hf_xet; network errors of hf_xet are RuntimeErrors.
_LIBRARY_ERRORS = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    OSError,
    EntryNotFoundError,
    HFValidationError,
    SafetensorsParsingError,
    json.JSONDecodeError,
    RuntimeError,
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubCaller:
    """Runs calls of the client and translates what they raise.

    Attributes:
        endpoint: Address of the Hub.
        noun: Kind of the repos: `model` or `dataset`.
        access: Of the calls: `read` or `write to`.
        refusal: Raised when the request cannot work.
        sleep: Waits that many seconds between two tries.
        on_try: Called before every try.
    """

    endpoint: str
    noun: Literal["model", "dataset"] = "model"
    access: Literal["read", "write to"] = "read"
    refusal: type[RequestError] = ModelNotFoundError
    sleep: Callable[[float], None] = time.sleep
    on_try: Callable[[], None] = lambda: None

    def __call__(
        self,
        action: Callable[[], T],
        *,
        repo: str,
        revision: str | None = None,
        num_tries: int = _NUM_TRIES,
    ) -> T:
        """The result of `action`, a call about `repo`.

        Raises:
            RequestError: `refusal`: no such repo, revision or file, or no access to it.
            InvalidOptionError: The environment names a proxy or certificates that cannot be used.
            InvalidModelError: The header of a safetensors file cannot be parsed.
            CardError: The Hub rejects the metadata of the card.
            HubUnavailableError: Network, rate limit, 5xx, or the client is set offline.
            StorageFullError: The disk of the cache is full, or the cache cannot be written.
            HubQuotaError: The account has no storage left on the Hub.
        """
        for num_failures in range(1, num_tries + 1):
            # The client sets no timeout itself, and opens a new session after a failed connection.
            _session().timeout = httpx2.Timeout(TIMEOUT_SECS)
            self.on_try()
            try:
                return action()
            except (*_LIBRARY_ERRORS, *_GARBLED) as error:
                if not isinstance(error, _LIBRARY_ERRORS) and not _is_of_client(error):
                    raise
                wait_secs = _wait_secs(error, num_failures)
                if wait_secs is None or num_failures == num_tries:
                    raise self._translated(error, repo, revision) from error
                _logger.info("The Hub failed (%s); next try soon", type(error).__name__)
                self.sleep(wait_secs)
        raise AssertionError("unreachable")

    def _translated(self, error: Exception, repo: str, revision: str | None) -> DynquantError:
        if (cause := _cause(error)) is not None:
            return self._translated(cause, repo, revision)
        if isinstance(error, SafetensorsParsingError):
            return InvalidModelError(
                f"A safetensors file of '{repo}' has no valid header: it is truncated or corrupt. "
                "Ask its author to upload it again, or take another model."
            )
        if (words := _words_about_card(error)) is not None:
            return CardError(
                f"The Hub rejects the metadata of the card of '{repo}': {words}. Correct "
                "the lines between the two '---' at the top of README.md, and publish again."
            )
        if _is_quota(error):
            return HubQuotaError(
                f"The account that owns '{repo}' has no storage left on the Hub, so this repo was "
                "not published. Delete repos or files that are not needed, or get more storage, "
                "and try again."
            )
        if (refusal := self._refusal(error, repo, revision)) is not None:
            reason, sentence = refusal
            return self.refusal(sentence, reason=reason)
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            return StorageFullError(
                f"The disk is full: '{repo}' could not be stored in the Hugging Face cache. "
                "Free some space, or set HF_HOME to a folder on a larger disk."
            )
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
            return StorageFullError(
                "The Hugging Face cache cannot be written. Make it writable, or set HF_HOME to "
                "another folder."
            )
        if isinstance(error, _GARBLED):
            _logger.warning("An answer about '%s' cannot be parsed", repo, exc_info=error)
        return HubUnavailableError(_unavailable_sentence(error, repo, proxy_for(self.endpoint)))

    def _refusal(
        self, error: Exception, repo: str, revision: str | None
    ) -> tuple[Reason, str] | None:
        if _may_be_of_token(error) and (problem := token_problem()) is not None:
            return Reason.TOKEN_REFUSED, problem
        # A gated repo is a kind of missing repo for the client, so it comes first.
        if isinstance(error, GatedRepoError):
            page = f"{self.endpoint}/{'datasets/' * (self.noun == 'dataset')}{repo}"
            return Reason.GATED, (
                f"'{repo}' is gated, and its terms are not accepted for the token in use. Accept "
                f"them at {page}, then set HF_TOKEN to a token of that account."
            )
        if isinstance(error, DisabledRepoError):
            return Reason.DISABLED, (
                f"The Hub has disabled '{repo}', so it cannot be read. Take another {self.noun}."
            )
        if isinstance(error, RevisionNotFoundError):
            return Reason.REVISION_NOT_FOUND, (
                f"'{repo}' has no revision '{revision}'. Give an existing branch, tag or commit, "
                "or leave the revision out."
            )
        if isinstance(error, RepositoryNotFoundError) or (
            type(error) is HfHubHTTPError and _status(error) == _NOT_FOUND
        ):
            return Reason.MODEL_NOT_FOUND, (
                f"There is no {self.noun} '{repo}' on the Hub, or it is private. Check the "
                f"spelling; if it is private, set HF_TOKEN to a token that may {self.access} it."
            )
        if isinstance(error, HFValidationError):
            return Reason.INVALID_ID, (
                f"'{repo}' cannot be the id of a {self.noun} on the Hub. An id looks like "
                "'organization/name'."
            )
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return Reason.INVALID_MODEL, (
                f"A file of '{repo}' is missing there. Look at the repo's page on the Hub."
            )
        return self._status_refusal(error, repo)

    def _status_refusal(self, error: Exception, repo: str) -> tuple[Reason, str] | None:
        status = _status(error)
        if isinstance(error, LocalTokenNotFoundError):
            return Reason.NOT_SIGNED_IN, (
                "This needs a token of the Hub. Set HF_TOKEN to a token that may "
                f"{self.access.removesuffix(' to')} there, or run 'hf auth login'."
            )
        if status == _UNAUTHORIZED:
            return Reason.TOKEN_REFUSED, (
                "The Hub does not accept the token in use; it may have expired. Set HF_TOKEN to a "
                "valid token, or log in again with 'hf auth login'."
            )
        if status == _FORBIDDEN:
            return Reason.NO_ACCESS, (
                f"The token in use may not {self.access} '{repo}'. Set HF_TOKEN to a token with "
                "that permission."
            )
        if status is not None and 400 <= status < 500 and status not in _TRANSIENT_STATUS:  # noqa: PLR2004
            return Reason.NO_ACCESS, (
                f"The Hub refuses to {'give' if self.access == 'read' else self.access} '{repo}' "
                f"(status {status}). Look at the repo's page there."
            )
        return None


def _session() -> httpx2.Client:
    """The client that huggingface_hub shares between its calls.

    Raises:
        InvalidOptionError: The environment names a proxy or certificates that cannot be used.
    """
    try:
        return get_session()
    except (ImportError, OSError, ValueError, httpx2.InvalidURL):
        check_connection()
        raise


def _may_be_of_token(error: Exception) -> bool:
    """Whether a malformed or unreadable token can have caused it."""
    if _status(error) == _UNAUTHORIZED:
        assert isinstance(error, HfHubHTTPError)
        scheme, _, sent = error.response.request.headers.get("authorization", "").partition(" ")
        return scheme == "Bearer" and not is_bearer(sent)
    has_errno = isinstance(error, OSError) and error.errno in _NOT_WRITABLE
    return has_errno or isinstance(error, UnicodeError | httpx2.LocalProtocolError)


def _unavailable_sentence(error: Exception, repo: str, proxy: str | None) -> str:
    """Why the Hub gave no answer; `proxy` is the variable that names the proxy in use."""
    status = _status(error)
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"'{repo}' is on the Hub, and HF_HUB_OFFLINE forbids requests there. Unset it, or pass "
            "a local folder or file."
        )
    if status == _TOO_MANY_REQUESTS:
        wait_secs = _asked_wait_secs(error)
        when = "later" if wait_secs is None else f"in {wait_secs:.0f} seconds"
        return f"The Hub was asked too often. Try again {when}; a token raises the limit."
    if status is not None:
        return f"The Hub answered with an error (status {status}). Try again later."
    if isinstance(error, httpx2.TimeoutException):
        return f"The Hub took too long to answer about '{repo}'. Try again later."
    if isinstance(error, httpx2.ConnectError | httpx2.ProxyError):
        return _unreachable_sentence(error, proxy)
    if isinstance(error, httpx2.InvalidURL | httpx2.UnsupportedProtocol):
        return _UNREACHABLE
    if isinstance(error, (FileMetadataError, *_GARBLED)):
        return _IN_ITS_PLACE
    return f"The connection to the Hub broke while working on '{repo}'. Try again."


def _unreachable_sentence(error: Exception, proxy: str | None) -> str:
    if _UNTRUSTED in str(error):
        return (
            "The certificate of the Hub cannot be checked. Set SSL_CERT_FILE to the certificates "
            "that this network needs, such as those of a proxy that decrypts traffic, and try "
            "again."
        )
    if proxy is not None:
        return (
            f"The Hub cannot be reached through the proxy that {proxy} names. Check that the proxy "
            f"runs and lets this machine through, or unset {proxy}, and try again."
        )
    return _IN_ITS_PLACE if isinstance(error, httpx2.ProxyError) else _UNREACHABLE


def _wait_secs(error: Exception, num_failures: int) -> float | None:
    """Pause before the next try; None if another try would not help."""
    if (cause := _cause(error)) is not None:
        return _wait_secs(cause, num_failures)
    status = _status(error)
    if status is not None:
        if status not in _TRANSIENT_STATUS | {_BAD_REQUEST}:
            return None
        asked = _asked_wait_secs(error)
        if asked is not None:
            return asked if asked <= _MAX_WAIT_SECS else None
    elif not isinstance(
        error, httpx2.TimeoutException | httpx2.NetworkError | httpx2.RemoteProtocolError
    ):
        return None
    return float(2 ** (num_failures - 1))


def _asked_wait_secs(error: Exception) -> float | None:
    if not isinstance(error, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(error.response.headers)
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    asked = error.response.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else None


def _is_of_client(error: Exception) -> bool:
    """Whether it comes from within huggingface_hub, rather than from a bug of ours."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals["__name__"].startswith("huggingface_hub.") for frame, _ in frames)


def _cause(error: Exception) -> Exception | None:
    """The error of a download or an upload that the client wrapped in one of its own."""
    cause = error.__cause__
    wraps = isinstance(error, LocalEntryNotFoundError | FileMetadataError) or (
        type(error) is RuntimeError
    )
    return cause if wraps and isinstance(cause, _LIBRARY_ERRORS) else None


def _words_about_card(error: Exception) -> str | None:
    """The Hub's findings about a card, on one line; None if the error is another."""
    said = str(error)
    if not isinstance(error, ValueError) or not said.startswith(_BAD_CARD):
        return None
    lines = said.removeprefix(_BAD_CARD).splitlines()
    return "; ".join(line.removeprefix("- ").rstrip(".") for line in lines) or None


def _is_quota(error: Exception) -> bool:
    status = _status(error)
    if status in {_PAYMENT_REQUIRED, _TOO_LARGE}:
        return True
    return status == _FORBIDDEN and "storage" in str(error).lower()


def _status(error: Exception) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None
