"""The inbox between a Space and its runners: a private dataset on the Hub.

    requests/2026-07-30/101530123456-0123456789abcdef.json   a request, until it has a result
    results/2026-07-30/101530123456-0123456789abcdef.json    its result

Nothing is claimed or locked. A request is appended under a unique path, and the commit that adds
its result deletes it, so exactly one of the two files exists. Each action looks before it writes,
so a process that lost an answer, or was killed, may repeat it.
"""

from __future__ import annotations

import json
import logging
import random
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from dynquant.errors import DestinationError, HubUnavailableError, RequestError
from dynquant.hub.calls import TIMEOUT_SECS
from dynquant.hub.client import HubClient
from dynquant.jobs.inbox import InboxEntry, entry_name, is_entry_name
from dynquant.jobs.request import JobRequest, request_from_json, request_to_json

__all__ = ["HubInbox"]

_MAX_BYTES = 64_000
"""Of one file; a typical request has less than one thousand."""
_MAX_ENTRIES = 200
_MAX_LISTED = 10_000
"""Files searched for the oldest: the Hub does not list them by time."""
_NUM_DOWNLOADS = 4

# The Hub answers 409 while it makes another commit, and 412 when a commit came in between; now and
# then it answers 412 even if no parent was named.
_CONFLICTS = frozenset({409, 412})
_PAUSES_SECS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)
"""Before looking again: the Hub's answers about a repo can be some seconds old."""

_logger = logging.getLogger(__name__)


class _RequestFile(NamedTuple):
    """A file as the Hub lists it; other content has another `blob_id`."""

    name: str
    blob_id: str
    num_bytes: int


class HubInbox(HubClient):
    """Requests to runners and their results, in a private dataset; a `jobs.inbox.Inbox`.

    The same request may be seen twice: after a restart, by two runners, or because a sender sent
    it again after losing an answer. That is harmless, because the job's id is a hash of the
    request's content (`dynquant.jobs.request.job_id`): all of them name the same job.

    A request's `requester` is taken from its file. It is trusted because only the Space may write
    to the dataset, and the Space has its visitors signed in at the Hub.

    A request and its result are a commit each, and the Hub accepts 128 an hour in one repo.

    Args:
        repo_id: `namespace/name` of the dataset.
        endpoint, token, sleep: As for `HubClient`.
    """

    _noun = "dataset"
    _access = "write to"
    _refusal = DestinationError

    def __init__(
        self,
        repo_id: str,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(endpoint=endpoint, token=token, sleep=sleep)
        self._repo_id = repo_id
        self._ask = partial(self._call, repo=repo_id)
        self._listing: tuple[str | None, tuple[_RequestFile, ...]] = (None, ())
        self._entries: dict[_RequestFile, InboxEntry] = {}
        self._has_warned = False

    def send(self, request: JobRequest) -> str:
        """Append `request`; makes the dataset if it is missing.

        Returns:
            The entry's name.

        Raises:
            RequestError: The request is invalid or too large.
            DestinationError: The dataset is public, or the token may not write to it.
            HubUnavailableError: Network, rate limit, 5xx. Sending it again is harmless.
        """
        request_from_json(request_to_json(request))
        content = _encoded("request", request_to_json(request))
        name = entry_name(sent_at=datetime.now(UTC), nonce=secrets.token_hex(8))
        path = _path("requests", name)
        is_again = False

        def append() -> None:
            nonlocal is_again
            self._make_if_missing()
            # An earlier try may have succeeded, and a runner may even have finished the request.
            if is_again and self._which_exist([path, _path("results", name)]):
                return
            is_again = True
            self._commit([CommitOperationAdd(path, content)], title=f"Request {name}")

        self._until_undisturbed(append)
        return name

    def pending(self, *, skip: Collection[str] = ()) -> Sequence[InboxEntry]:
        """The oldest requests that are not finished, at most 200 of them.

        A file that cannot be read as a request is an entry too, which the caller finishes with
        its sentence; until then it counts as one of the 200.

        Args:
            skip: Names of entries that the caller knows already; they are left out.

        Raises:
            DestinationError: No such dataset, no access to it, or it is public.
        """
        head = self._ask(self._look)
        files = [file for file in self._listed(head) if file.name not in skip][:_MAX_ENTRIES]
        self._entries = {file: self._entries[file] for file in files if file in self._entries}
        with ThreadPoolExecutor(_NUM_DOWNLOADS) as pool:
            return tuple(pool.map(partial(self._entry, head), files))

    def gone(self, names: Collection[str]) -> frozenset[str]:
        """Those of `names` that were not among the requests when `pending` looked last."""
        return frozenset(names) - {file.name for file in self._listing[1]}

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Replace the request with `result`; a result that is there already stays.

        Args:
            name: Of an entry.
            result: JSON types, at most 64 KB as text.

        Raises:
            RequestError: No entry has such a name, or the result is too large.
            DestinationError: No such dataset, no access to it, or it is public.
            HubUnavailableError: Network, rate limit, 5xx. Finishing it again is harmless.
        """
        _require_name(name)
        content = _encoded("result", result)
        request_path, result_path = _path("requests", name), _path("results", name)

        def replace() -> None:
            head = self._look()
            existing = self._which_exist([request_path, result_path], revision=head)
            operations: list[CommitOperationAdd | CommitOperationDelete] = []
            if result_path not in existing:
                operations.append(CommitOperationAdd(result_path, content))
            if request_path in existing:
                operations.append(CommitOperationDelete(request_path, is_folder=False))
            if operations:
                self._commit(operations, title=f"Result of {name}", parent=head)

        self._until_undisturbed(replace)

    def result(self, name: str) -> dict[str, Any] | None:
        """The result of a request; None while it has none.

        Raises:
            RequestError: No entry has such a name, or its result is damaged.
            DestinationError: No such dataset, or no access to it.
        """
        _require_name(name)

        def ask() -> bytes | None:
            try:
                return self._read(_path("results", name))
            except RemoteEntryNotFoundError:
                return None

        if (content := self._ask(ask)) is None:
            return None
        try:
            result = json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError):
            result = None
        if not isinstance(result, dict):
            raise RequestError(
                f"The result of '{name}' in '{self._repo_id}' is damaged. Delete it there and ask "
                "for the model again."
            )
        return result

    def _look(self) -> str | None:
        """The head of the dataset, which is refused if it is public."""
        # Without `expand` the answer would list every result that was ever written.
        info = self._api.dataset_info(
            self._repo_id, expand=["private", "sha"], timeout=TIMEOUT_SECS
        )
        if not info.private:
            raise DestinationError(
                f"'{self._repo_id}' is public, and requests name people. Make it private in its "
                "settings on the Hub, or use another dataset."
            )
        # The current name of a renamed dataset: the redirect from the old name drops the query.
        self._repo_id = info.id
        return info.sha

    def _make_if_missing(self) -> None:
        try:
            self._look()
        except GatedRepoError:  # a subclass of RepositoryNotFoundError
            raise
        except RepositoryNotFoundError:
            self._api.create_repo(
                self._repo_id, repo_type="dataset", visibility="private", exist_ok=True
            )
            self._look()

    def _listed(self, head: str | None) -> tuple[_RequestFile, ...]:
        """All requests at `head`, the oldest first."""
        if self._listing[0] != head:
            self._listing = head, self._ask(partial(self._list, head), revision=head)
        return self._listing[1]

    def _list(self, head: str | None) -> tuple[_RequestFile, ...]:
        tree = self._api.list_repo_tree(
            self._repo_id, "requests", recursive=True, revision=head, repo_type="dataset"
        )
        try:
            files = [each for each in islice(tree, _MAX_LISTED) if isinstance(each, RepoFile)]
        except RemoteEntryNotFoundError:  # git keeps no empty folder
            return ()
        requests = []
        for file in files:
            name = file.path.removeprefix("requests/").removesuffix(".json")
            if file.path == _path("requests", name) and is_entry_name(name):
                requests.append(_RequestFile(name, file.blob_id, file.size))
        if len(requests) < len(files) and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "%d files under requests/ of '%s' do not have names of requests; they are ignored",
                len(files) - len(requests),
                self._repo_id,
            )
        return tuple(sorted(requests))

    def _entry(self, head: str | None, file: _RequestFile) -> InboxEntry:
        if (entry := self._entries.get(file)) is None:
            content = None
            if file.num_bytes <= _MAX_BYTES:
                read = partial(self._read, _path("requests", file.name), revision=head)
                content = self._ask(read, revision=head)
            entry = self._entries[file] = _entry_of(file.name, content)
        return entry

    def _read(self, path: str, *, revision: str | None = None) -> bytes:
        return self._read_file(self._repo_id, path, max_bytes=_MAX_BYTES, revision=revision)

    def _which_exist(self, paths: list[str], *, revision: str | None = None) -> set[str]:
        found = self._api.get_paths_info(
            self._repo_id, paths, revision=revision, repo_type="dataset"
        )
        return {each.path for each in found}

    def _until_undisturbed(self, action: Callable[[], None]) -> None:
        """Run `action`, which commits, until no other commit comes in between."""
        for pause_secs in (0.0, *_PAUSES_SECS):
            if pause_secs:
                _logger.info("'%s' changed meanwhile; looking at it again", self._repo_id)
                # A random pause, so that two writers do not collide again.
                self._call.sleep(pause_secs * random.uniform(0.5, 1.5))  # noqa: S311
            with suppress(_ConflictError):
                return self._ask(action)
        raise HubUnavailableError(
            f"'{self._repo_id}' changes all the time, so nothing could be written to it. Try again "
            "later."
        )

    def _commit(
        self,
        operations: Sequence[CommitOperationAdd | CommitOperationDelete],
        *,
        title: str,
        parent: str | None = None,
    ) -> None:
        """Commit on top of `parent`, or of the current head if it is None.

        Raises:
            _ConflictError: Another commit came in between; or an earlier try of ours succeeded.
        """
        try:
            self._api.create_commit(
                self._repo_id,
                operations,
                commit_message=title,
                repo_type="dataset",
                parent_commit=parent,
            )
        except HfHubHTTPError as error:
            if error.response.status_code in _CONFLICTS:
                raise _ConflictError from error
            raise


class _ConflictError(Exception):
    """The repo has moved on since it was looked at."""


def _path(folder: Literal["requests", "results"], name: str) -> str:
    return f"{folder}/{name}.json"


def _require_name(name: str) -> None:
    if not is_entry_name(name):
        raise RequestError(
            "No request has this name. Use the name that was given when the request was sent."
        )


def _encoded(what: str, value: Mapping[str, Any]) -> bytes:
    content = json.dumps(dict(value), allow_nan=False, indent=1, sort_keys=True).encode()
    if len(content) > _MAX_BYTES:
        raise RequestError(
            f"This {what} has {len(content)} bytes, and the inbox accepts {_MAX_BYTES}. Shorten it."
        )
    return content


def _entry_of(name: str, content: bytes | None) -> InboxEntry:
    """The entry with that content; None stands for a file that is too large to be read."""
    if content is None:
        sentence = (
            f"This request is larger than {_MAX_BYTES} bytes, so it was not read. Shorten it."
        )
        return InboxEntry(name=name, sentence=sentence)
    try:
        return InboxEntry(name=name, request=request_from_json(json.loads(content.decode("utf-8"))))
    except RequestError as error:
        sentence = str(error)
    except (ValueError, OverflowError, RecursionError):
        sentence = "This request is not valid JSON. Ask for the model again."
    return InboxEntry(name=name, sentence=sentence)
