from __future__ import annotations

import errno

import httpx2
import pytest
from huggingface_hub.errors import FileMetadataError, LocalEntryNotFoundError

from dynquant.errors import HubUnavailableError, StorageFullError
from dynquant.hub.calls import HubCaller

SECRET = "hf_very_secret"


def make_caller() -> HubCaller:
    return HubCaller(endpoint="https://huggingface.co", sleep=lambda _: None)


def wrapped(cause: Exception) -> LocalEntryNotFoundError:
    """The error that a download of huggingface_hub raises because of `cause`."""
    error = LocalEntryNotFoundError("no connection, or so")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected", "words", "num_tries"),
    [
        (OSError(errno.ENOSPC, "x"), StorageFullError, "disk is full.*HF_HOME", 1),
        (OSError(errno.EDQUOT, "x"), StorageFullError, "disk is full", 1),
        (PermissionError(errno.EACCES, "x"), StorageFullError, "cannot be written", 1),
        (OSError("Consistency check failed"), HubUnavailableError, "connection .* broke", 1),
        (RuntimeError("CAS service error"), HubUnavailableError, "connection .* broke", 1),
        (FileMetadataError("no ETag"), HubUnavailableError, "answers in its place", 1),
        (httpx2.ProxyError("x"), HubUnavailableError, "proxy", 1),
        (httpx2.ReadTimeout("x"), HubUnavailableError, "too long", 3),
        (wrapped(httpx2.ConnectError("x")), HubUnavailableError, "cannot be reached", 3),
        (wrapped(FileMetadataError("x")), HubUnavailableError, "answers in its place", 1),
        (LocalEntryNotFoundError("x"), HubUnavailableError, "broke", 1),
    ],
)
def test_errors_of_the_client_become_ours_with_a_sentence(error, expected, words, num_tries):
    tries = []

    def action():
        tries.append(1)
        error.args = (*error.args, f"Authorization: Bearer {SECRET}")
        raise error

    with pytest.raises(expected, match=words) as caught:
        make_caller()(action, repo="alice/tiny")
    assert SECRET not in str(caught.value)
    assert len(tries) == num_tries


def test_a_bug_of_ours_is_not_reported_as_an_error_of_the_hub():
    def action():
        raise KeyError("slip")

    with pytest.raises(KeyError):
        make_caller()(action, repo="alice/tiny")
