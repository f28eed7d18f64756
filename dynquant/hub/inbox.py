"""The mailbox between a Space and its runners: a private dataset on the Hub.

    requests/2026-07-30/101530123456-0123456789abcdef.json   what is asked for, until it is finished
    results/2026-07-30/101530123456-0123456789abcdef.json    what came of it

Nobody claims or locks anything. A request is appended under a path that nobody else takes, and
the commit that writes its result takes it away, so there is always the one or the other. Each
action looks before it writes, so it may be repeated by whoever lost an answer, or died.
"""

from __future__ import annotations

import json
import logging
import random
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, Literal

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_session,
    hf_hub_url,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)

from dynquant.errors import DestinationError, HubUnavailableError, RequestError
from dynquant.hub.calls import TIMEOUT_SECS, HubCaller
from dynquant.jobs.request import JobRequest, request_from_json, request_to_json

__all__ = ["HubInbox", "InboxEntry"]

_NAME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}/[0-9]{12}-[0-9a-f]{16}")
_REQUEST = re.compile(rf"requests/({_NAME.pattern})\.json")

_MAX_BYTES = 64_000
"""Of one file; what people ask for takes less than one thousand."""
_MAX_ENTRIES = 200
_MAX_LISTED = 10_000
"""Files looked at in search of the oldest: the Hub lists them in an order of its own."""
_NUM_DOWNLOADS = 4

# The Hub answers 409 while it makes another commit, and 412 when one came in between; it does the
# latter now and then even if no parent was named.
_CONFLICTS = frozenset({409, 412})
_PAUSES_SECS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0)
"""Before looking again: what the Hub says of a repo can be some seconds old."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class InboxEntry:
    """A file among the requests.

    Attributes:
        name: What the inbox calls it.
        request: None if the file is none.
        sentence: Why it is none.
    """

    name: str
    request: JobRequest | None = None
    sentence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _RequestFile:
    """A file as the Hub lists it; other content has another `blob_id`."""

    name: str
    blob_id: str
    num_bytes: int


class HubInbox:
    """Requests to runners and their results, in a private dataset.

    The same request may be seen twice: after a restart, by two runners, or because a sender sent
    it again after losing an answer. That is harmless to whoever takes the job's id from its
    content (`dynquant.jobs.job.job_id`): each of them names the same job.

    A request's `requester` is what its file says. It is believed because only who may write to
    the dataset can put a file there: the Space, which asks the Hub who its visitor is.

    A request and its result are a commit each, and the Hub takes 128 an hour in one repo.

    Args:
        repo_id: `namespace/name` of the dataset.
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).
        token: None is the one that huggingface_hub finds.
        sleep: Waits that many seconds between two tries.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._repo_id = repo_id
        self._api = HfApi(endpoint=endpoint, token=token, library_name="dynquant")
        self._sleep = sleep
        self._call = partial(
            HubCaller(
                noun="dataset",
                refusal=DestinationError,
                page_prefix=f"{self._api.endpoint}/datasets/",
                access="write to",
                sleep=sleep,
            ),
            repo=repo_id,
        )
        self._listing: tuple[str | None, tuple[_RequestFile, ...]] = (None, ())
        self._entries: dict[_RequestFile, InboxEntry] = {}
        self._has_warned = False

    def send(self, request: JobRequest) -> str:
        """Append `request`; makes the dataset if it is missing.

        Returns:
            The entry's name.

        Raises:
            RequestError: No runner could read it.
            DestinationError: The dataset is public, or the token may not write to it.
            HubUnavailableError: Network, rate limit, 5xx. Sending it again is harmless.
        """
        request_from_json(request_to_json(request))
        content = _encoded("request", request_to_json(request))
        name = _new_name()
        path = _path("requests", name)
        is_again = False

        def append() -> None:
            nonlocal is_again
            self._make_if_missing()
            # An earlier try may have come through, and a runner may even have finished it.
            if is_again and self._which_exist([path, _path("results", name)]):
                return
            is_again = True
            self._commit([CommitOperationAdd(path, content)], title=f"Request {name}")

        self._until_undisturbed(append)
        return name

    def pending(self, *, skip: Collection[str] = ()) -> Sequence[InboxEntry]:
        """The oldest requests that are not finished, at most 200 of them.

        What is no request is an entry too, to be finished with its sentence; until then it counts
        as one of the 200.

        Args:
            skip: Names of entries that the caller knows already, to see those behind them.

        Raises:
            DestinationError: No such dataset, no access to it, or it is public.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        head = self._call(self._look)
        files = [file for file in self._listed(head) if file.name not in skip][:_MAX_ENTRIES]
        self._entries = {file: self._entries[file] for file in files if file in self._entries}
        with ThreadPoolExecutor(_NUM_DOWNLOADS) as pool:
            return tuple(pool.map(partial(self._entry, head), files))

    def gone(self, names: Collection[str]) -> frozenset[str]:
        """Those of `names` that were no requests any more when `pending` looked last."""
        return frozenset(names) - {file.name for file in self._listing[1]}

    def finish(self, name: str, result: Mapping[str, Any]) -> None:
        """Put `result` in the place of the request; a result that is there already stays.

        Args:
            name: Of an entry.
            result: What JSON can say, at most 64 KB of it.

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
        """What came of a request; None while nothing has.

        Raises:
            RequestError: No entry has such a name, or its result is damaged.
            DestinationError: No such dataset, or no access to it.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        _require_name(name)

        def ask() -> bytes | None:
            try:
                return self._read(_path("results", name), revision=None)
            except RemoteEntryNotFoundError:
                return None

        if (content := self._call(ask)) is None:
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
        """The head of the dataset, which is refused if everybody can read it."""
        # Without `expand` the answer would name every result there ever was.
        info = self._api.dataset_info(
            self._repo_id, expand=["private", "sha"], timeout=TIMEOUT_SECS
        )
        if not info.private:
            raise DestinationError(
                f"'{self._repo_id}' is public, and requests name people. Make it private in its "
                "settings on the Hub, or use another dataset."
            )
        # Today's name of a dataset that was renamed: the way from the old one loses queries.
        self._repo_id = info.id
        return info.sha

    def _make_if_missing(self) -> None:
        try:
            self._look()
        except GatedRepoError:  # a kind of missing repo for the client
            raise
        except RepositoryNotFoundError:
            self._api.create_repo(
                self._repo_id, repo_type="dataset", visibility="private", exist_ok=True
            )
            self._look()

    def _listed(self, head: str | None) -> tuple[_RequestFile, ...]:
        """All requests at `head`, the oldest first."""
        if self._listing[0] != head:
            self._listing = head, self._call(partial(self._list, head), revision=head)
        return self._listing[1]

    def _list(self, head: str | None) -> tuple[_RequestFile, ...]:
        tree = self._api.list_repo_tree(
            self._repo_id, "requests", recursive=True, revision=head, repo_type="dataset"
        )
        try:
            files = [each for each in islice(tree, _MAX_LISTED) if isinstance(each, RepoFile)]
        except RemoteEntryNotFoundError:  # git keeps no empty folder
            return ()
        requests = [
            _RequestFile(name=found[1], blob_id=file.blob_id, num_bytes=file.size)
            for file in files
            if (found := _REQUEST.fullmatch(file.path)) and _is_time(found[1])
        ]
        if len(requests) < len(files) and not self._has_warned:
            self._has_warned = True
            _logger.warning(
                "%d files under requests/ of '%s' have names that no request has; they are ignored",
                len(files) - len(requests),
                self._repo_id,
            )
        return tuple(sorted(requests, key=lambda file: file.name))

    def _entry(self, head: str | None, file: _RequestFile) -> InboxEntry:
        if (entry := self._entries.get(file)) is None:
            content = None
            if file.num_bytes <= _MAX_BYTES:
                read = partial(self._read, _path("requests", file.name), revision=head)
                content = self._call(read, revision=head)
            entry = self._entries[file] = _entry_of(file.name, content)
        return entry

    def _read(self, path: str, *, revision: str | None) -> bytes:
        """The content of a file, cut where it is too large.

        The client's own download asks twice for each file, and writes it to a disk.
        """
        url = hf_hub_url(
            self._repo_id,
            path,
            repo_type="dataset",
            revision=revision,
            endpoint=self._api.endpoint,
        )
        headers = build_hf_headers(token=self._api.token, library_name="dynquant")
        headers["Accept-Encoding"] = "identity"
        content = bytearray()
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECS) as response:
            hf_raise_for_status(response)
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) >= _MAX_BYTES:
                    break
        return bytes(content[:_MAX_BYTES])

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
                # Spread out, or those who met once would meet again.
                self._sleep(pause_secs * random.uniform(0.5, 1.5))  # noqa: S311
            with suppress(_ConflictError):
                return self._call(action)
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
        """Commit on top of `parent`, or of whatever is there.

        Raises:
            _ConflictError: Another commit came in between; or our own came through.
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


def _new_name() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d/%H%M%S%f}-{secrets.token_hex(8)}"


def _is_time(name: str) -> bool:
    """Whether a name says when a request was sent, which its readers rely on."""
    try:
        datetime.strptime(name[:23], "%Y-%m-%d/%H%M%S%f").replace(tzinfo=UTC)
    except ValueError:
        return False
    return True


def _path(folder: Literal["requests", "results"], name: str) -> str:
    return f"{folder}/{name}.json"


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise RequestError(
            "No request has this name. Use the one that was given when the request was sent."
        )


def _encoded(what: str, value: Mapping[str, Any]) -> bytes:
    content = json.dumps(dict(value), allow_nan=False, indent=1, sort_keys=True).encode()
    if len(content) > _MAX_BYTES:
        raise RequestError(
            f"This {what} takes {len(content)} bytes, and the inbox takes {_MAX_BYTES}. Shorten it."
        )
    return content


def _entry_of(name: str, content: bytes | None) -> InboxEntry:
    """The entry with that content; None is one that is too large to be read."""
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
        sentence = "This request is no JSON that can be read. Ask for the model again."
    return InboxEntry(name=name, sentence=sentence)
