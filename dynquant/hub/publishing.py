"""Finished models go to the Hub: one commit, on top of the head that was looked at, read back.

A reader finds a whole model under its name, or none. The weights are stored before anything
refers to them, and one commit then makes all files visible at once, so whoever dies on the way
leaves at most an empty repo, and whoever comes again goes on from what is stored already.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from dynquant.errors import (
    CardError,
    DestinationError,
    HubUnavailableError,
    InvalidModelError,
    Reason,
    VerificationError,
)
from dynquant.hub.accounts import Account, account_of
from dynquant.hub.calls import TIMEOUT_SECS, HubCaller
from dynquant.hub.listing import access_in
from dynquant.hub.local_files import LocalFile, changed_meanwhile, local_files
from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.progress import OnStep, Progress
from dynquant.publish import PublishedModel
from dynquant.report.artefacts import origin_in

__all__ = ["PLAN", "Account", "HubPublisher"]

PLAN = "dynquant/plan.json"
"""A repo that holds this file was published by dynquant."""

CARD = "README.md"

_HUBS_OWN = ".gitattributes"
"""The Hub writes it into every new repo."""

_CONFLICTS = frozenset({409, 412})
_PAUSES_SECS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""After each try to commit that somebody else came before."""

_LARGE_BYTES = 10**6
"""Files of this size are sent one by one, so that each is tried again by itself."""

OnStored = Callable[[Iterable[str]], None]
"""Called with the names of files that the Hub holds now."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remote:
    """A repo at its head. `oids` is file name → sha256 where stored as LFS, else git's sha1."""

    repo_id: str
    head: str
    oids: Mapping[str, str]
    sizes: Mapping[str, int]
    access: Access

    @property
    def is_empty(self) -> bool:
        return not set(self.oids) - {_HUBS_OWN}

    def has(self, name: str, file: LocalFile) -> bool:
        """Whether `name` is there with the content of `file`."""
        is_sized = self.sizes.get(name) == file.num_bytes  # cheaper than hashing
        return is_sized and file.is_called(self.oids[name])


class HubPublisher:
    """Publishes folders; a `publish.ModelPublisher`.

    Args:
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).
        token: None is the one that huggingface_hub finds.
        sleep: Waits that many seconds between two tries.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = HfApi(endpoint=endpoint, token=token, library_name="dynquant")
        self._call = HubCaller.to_write(self._api.endpoint, sleep=sleep)

    def check(self, repo_id: str, *, origin: Origin, access: Access) -> None:
        """Refuse before any work when a quant of `origin` could not be published to `repo_id`.

        Args:
            repo_id: `namespace/name`.
            origin: The original.
            access: Who may read the quant.

        Raises:
            DestinationError: No token or none that may write there, or the repo holds
                something that dynquant did not make of `origin`, or more people may read it.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        self._require_permission(repo_id)
        if (remote := self._remote(repo_id)) is not None:
            _require_not_moved(remote, repo_id)
            self._require_ours(remote, origin)
            _require_no_more_open(remote, access)

    def published(self, repo_id: str) -> tuple[PublishedModel, str] | None:
        """What dynquant published there, and its `dynquant/plan.json`; None if nothing."""
        remote = self._remote(repo_id)
        if remote is None or PLAN not in remote.oids:
            return None
        return self._model(remote, is_new=False), self._read_plan(remote)

    def publish(
        self,
        folder: Path,
        repo_id: str,
        *,
        origin: Origin,
        title: str,
        access: Access,
        progress: Progress,
    ) -> PublishedModel:
        """Make the repo hold exactly the files of `folder`, in one commit; none if it does.

        An older version of the same model is updated, and stays in the history.

        Args:
            folder: A finished model.
            repo_id: `namespace/name`; made if it is not there.
            origin: The original.
            title: Of the commit.
            access: Who may read the quant. A new or empty repo is closed to all others before
                anything is sent; one that holds a quant has to be closed to them already.
            progress: Shows the step `publish`, in bytes that the Hub holds.

        Raises:
            DestinationError: See `check`.
            CardError: The Hub does not take the metadata of the card; nothing was sent.
            VerificationError: The Hub does not hold what was sent.
            HubQuotaError: The account has no storage left.
            HubUnavailableError: Network, rate limit, 5xx. Nothing was published.
        """
        files = local_files(folder)
        if PLAN not in files:
            raise InvalidModelError(
                f"'{folder.name}' is no folder that dynquant made: it has no {PLAN}. Pass one "
                "that 'dynquant quantize' wrote."
            )
        self._require_permission(repo_id)
        there = self._remote(repo_id)
        if there is not None:
            _require_not_moved(there, repo_id)
        if CARD in files and not (there and there.has(CARD, files[CARD])):
            self._require_valid_card(repo_id, files[CARD].path)
        remote = there or self._create(repo_id, private=access.is_private)
        if remote.is_empty:
            remote = self._tightened(remote, access)
        total = sum(file.num_bytes for file in files.values())
        with progress.track({"publish": total}) as on_step:
            return self._bring_about(
                remote,
                files,
                origin=origin,
                title=title,
                access=access,
                on_stored=_counter(files, on_step),
            )

    def _bring_about(
        self,
        remote: _Remote,
        files: Mapping[str, LocalFile],
        *,
        origin: Origin,
        title: str,
        access: Access,
        on_stored: OnStored,
    ) -> PublishedModel:
        """Commit until the repo holds `files`: once, unless somebody else commits meanwhile."""
        is_new = False
        for pause_secs in _PAUSES_SECS:
            self._require_ours(remote, origin)
            _require_no_more_open(remote, access)
            changed = {name: file for name, file in files.items() if not remote.has(name, file)}
            stale = sorted(set(remote.oids) - set(files) - {_HUBS_OWN})
            on_stored(set(files) - set(changed))
            if not changed and not stale:
                break
            is_new = True
            try:
                made = self._commit(remote, changed, stale, title=title, on_stored=on_stored)
            except _StaleParentError:
                _logger.info("'%s' changed meanwhile; looking at it again", remote.repo_id)
                # Spread out, or those who met once would meet again.
                self._call.sleep(pause_secs * random.uniform(0.5, 1.5))  # noqa: S311
                remote = self._require_remote(remote.repo_id)
            else:
                # Not at the head, of which the Hub may still give the answer of before.
                remote = self._remote(remote.repo_id, at=made) or self._require_remote(
                    remote.repo_id
                )
        _require_whole(remote, files)
        return self._model(remote, is_new=is_new)

    def account(self) -> Account:
        """Whose token is in use, and where it may publish.

        Raises:
            DestinationError: There is no token, or the Hub does not accept it.
        """
        return account_of(self._call(self._api.whoami, repo="the account in use"))

    def _require_permission(self, repo_id: str) -> None:
        account = self.account()
        if not account.may_write:
            raise DestinationError(
                "The token in use may only read. Set HF_TOKEN to one that may write to "
                f"'{repo_id}'.",
                reason=Reason.NO_ACCESS,
            )
        namespace, slash, _ = repo_id.partition("/")
        if not slash or namespace not in account.namespaces:
            raise DestinationError(
                f"The token in use belongs to '{account.name}', who cannot publish as "
                f"'{namespace}'. Publish to one of: {', '.join(account.namespaces)}; or set "
                "HF_TOKEN to a token of the other account.",
                reason=Reason.DESTINATION_FORBIDDEN,
            )
        if not account.may_write_to(repo_id):
            raise DestinationError(
                f"The fine-grained token in use may not write to '{repo_id}'. Give it write access "
                f"to the contents and settings of all repos of '{namespace}', or set HF_TOKEN to "
                "one that has it.",
                reason=Reason.NO_ACCESS,
            )

    def _remote(self, repo_id: str, *, at: str | None = None) -> _Remote | None:
        """What the repo holds at its head, or at a commit; None if there is no such thing."""

        def ask() -> _Remote | None:
            try:
                info = self._api.model_info(
                    repo_id, revision=at, files_metadata=True, timeout=TIMEOUT_SECS
                )
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
            siblings = info.siblings or []
            return _Remote(
                repo_id=info.id,
                head=info.sha or "",
                oids={
                    each.rfilename: each.lfs.sha256 if each.lfs else each.blob_id or ""
                    for each in siblings
                },
                sizes={each.rfilename: each.size or 0 for each in siblings},
                access=access_in(info),
            )

        return self._call(ask, repo=repo_id)

    def _require_remote(self, repo_id: str) -> _Remote:
        if (remote := self._remote(repo_id)) is None:
            raise HubUnavailableError(
                f"'{repo_id}' vanished from the Hub while it was being published. Publish again."
            )
        return remote

    def _require_ours(self, remote: _Remote, origin: Origin) -> None:
        """Refuse a repo that holds anything else than a quant of `origin`."""
        if remote.is_empty:
            return
        if PLAN not in remote.oids:
            raise DestinationError(
                f"'{remote.repo_id}' holds files that dynquant did not publish, and it overwrites "
                "nothing of others. Publish under another name, or delete that repo first.",
                reason=Reason.DESTINATION_TAKEN,
            )
        theirs = origin_in(self._read_plan(remote))
        if theirs is not None and theirs.is_same_as(origin):
            return
        named = theirs.name if theirs is not None else "a model that its plan does not name"
        what = (
            f"of an earlier model that was called '{origin.name}'"
            if named == origin.name
            else f"of {named!r:.200}, not of '{origin.name}'"
        )
        raise DestinationError(
            f"'{remote.repo_id}' holds a quant {what}. Publish under another name, or delete that "
            "repo first.",
            reason=Reason.DESTINATION_TAKEN,
        )

    def _require_valid_card(self, repo_id: str, card: Path) -> None:
        """Ask what the client itself asks the Hub only once all weights are there."""
        try:
            content = card.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CardError(
                f"The card of '{repo_id}' is no text in UTF-8. Save README.md as UTF-8, and "
                "publish again."
            ) from error
        self._call(lambda: self._api._validate_yaml(content), repo=repo_id)  # noqa: SLF001

    def _read_plan(self, remote: _Remote) -> str:
        with TemporaryDirectory() as folder:
            path = Path(
                self._call(
                    lambda: self._api.hf_hub_download(
                        remote.repo_id, PLAN, revision=remote.head, cache_dir=folder
                    ),
                    repo=remote.repo_id,
                    revision=remote.head,
                )
            )
            # A repo that was renamed is listed without hashes.
            file = LocalFile(path=path, num_bytes=path.stat().st_size)
            if remote.oids[PLAN] and not file.is_called(remote.oids[PLAN]):
                raise HubUnavailableError(
                    f"The plan of '{remote.repo_id}' arrived damaged. Try again."
                )
            return path.read_text(encoding="utf-8", errors="replace")

    def _create(self, repo_id: str, *, private: bool) -> _Remote:
        self._call(
            lambda: self._api.create_repo(
                repo_id, visibility="private" if private else "public", exist_ok=True
            ),
            repo=repo_id,
        )
        return self._require_remote(repo_id)

    def _tightened(self, remote: _Remote, access: Access) -> _Remote:
        """An empty repo, closed to all whom `access` leaves out; read back.

        Raises:
            DestinationError: The Hub says that it is still more open.
        """
        settings: dict[str, Any] = {}
        if access.is_private and not remote.access.is_private:
            settings["visibility"] = "private"
        if remote.access.has_weaker_gate_than(access):  # also of a private one: it may be opened
            settings["gated"] = "auto" if access.gated == "auto" else "manual"
        if not settings:
            return remote
        repo_id = remote.repo_id
        self._call(lambda: self._api.update_repo_settings(repo_id, **settings), repo=repo_id)
        for pause_secs in (0.0, *_PAUSES_SECS):
            self._call.sleep(pause_secs)  # the Hub may give the answer of before for a while
            remote = self._require_remote(repo_id)
            if not remote.access.is_more_open_than(access):
                return remote
        raise _too_open(remote, access)

    def _commit(
        self,
        remote: _Remote,
        changed: Mapping[str, LocalFile],
        stale: Sequence[str],
        *,
        title: str,
        on_stored: OnStored,
    ) -> str:
        """Store every changed file, then show them all at once; the commit that does.

        Raises:
            _StaleParentError: The repo is no longer as it was looked at.
        """
        additions = {name: _addition(name, file) for name, file in changed.items()}
        deletions = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in stale]
        with _no_bars():
            for name, addition in additions.items():
                if changed[name].num_bytes >= _LARGE_BYTES:
                    self._store(remote.repo_id, addition)
                    on_stored([name])
            made = self._call(
                lambda: self._send(remote, [*additions.values(), *deletions], title),
                repo=remote.repo_id,
            )
        on_stored(changed)
        return made

    def _store(self, repo_id: str, addition: CommitOperationAdd) -> None:
        self._call(lambda: self._api.preupload_lfs_files(repo_id, [addition]), repo=repo_id)

    def _send(
        self,
        remote: _Remote,
        operations: Sequence[CommitOperationAdd | CommitOperationDelete],
        title: str,
    ) -> str:
        try:
            made = self._api.create_commit(
                remote.repo_id, operations, commit_message=title, parent_commit=remote.head or None
            )
        except RemoteEntryNotFoundError as error:  # a file to delete is gone
            raise _StaleParentError from error
        except HfHubHTTPError as error:
            if error.response.status_code in _CONFLICTS:
                raise _StaleParentError from error
            raise
        return made.oid

    def _model(self, remote: _Remote, *, is_new: bool) -> PublishedModel:
        return PublishedModel(
            repo_id=remote.repo_id,
            commit_sha=remote.head,
            url=f"{self._api.endpoint}/{remote.repo_id}",
            is_new=is_new,
        )


class _StaleParentError(Exception):
    """The repo has moved on since it was looked at; or our own commit came through."""


def _addition(name: str, file: LocalFile) -> CommitOperationAdd:
    """A file to send, with the content that it has now.

    Small files are sent from memory. Of large ones the client names the hash before it sends them,
    and the Hub takes no other content under that name.

    Raises:
        InvalidModelError: It is not what it was when it was found.
    """
    sha256 = file.sha256  # of the plain file that was found, whatever `path` leads to by now
    content = file.read() if file.num_bytes < _LARGE_BYTES else file.path
    addition = CommitOperationAdd(path_in_repo=name, path_or_fileobj=content)
    if addition.upload_info.sha256.hex() != sha256:
        raise changed_meanwhile(name)
    return addition


def _counter(files: Mapping[str, LocalFile], on_step: OnStep) -> OnStored:
    """Counts the bytes of each file once."""
    stored: set[str] = set()

    def on_stored(names: Iterable[str]) -> None:
        new = set(names) - stored
        stored.update(new)
        on_step("publish", sum(files[name].num_bytes for name in new))

    return on_stored


def _require_not_moved(remote: _Remote, repo_id: str) -> None:
    """Refuse a repo of another namespace, to which the Hub leads from where it was before.

    The token may perhaps write there; that this job may, nobody has said.

    Raises:
        DestinationError: It is one.
    """
    if remote.repo_id.partition("/")[0].lower() != repo_id.partition("/")[0].lower():
        raise DestinationError(
            f"'{repo_id}' was moved to '{remote.repo_id}', which is not where this quant is to be "
            "published. Publish under another name, or name that namespace as the destination.",
            reason=Reason.DESTINATION_TAKEN,
        )


def _require_no_more_open(remote: _Remote, access: Access) -> None:
    """Refuse a repo with files that people may read whom `access` leaves out.

    Its owner has to close it, since it was open on purpose; an empty repo is closed when files go
    there.

    Raises:
        DestinationError: It is more open.
    """
    if remote.access.is_more_open_than(access) and not remote.is_empty:
        raise _too_open(remote, access)


def _too_open(remote: _Remote, access: Access) -> DestinationError:
    return DestinationError(
        f"'{remote.repo_id}' is {remote.access}, and this quant has to be {access}, as its source "
        "is or as was asked for. Make that repo as closed in its settings on the Hub, or publish "
        "under another name.",
        reason=Reason.DESTINATION_TOO_OPEN,
    )


def _require_whole(remote: _Remote, files: Mapping[str, LocalFile]) -> None:
    """Compare what the Hub says that it holds with what is here: names, sizes, hashes."""
    wrong = [name for name, file in files.items() if not remote.has(name, file)]
    if wrong or set(remote.oids) - set(files) - {_HUBS_OWN}:
        raise VerificationError(
            f"'{remote.repo_id}' does not hold what was published"
            + (f": '{wrong[0]}' differs" if wrong else ": it has other files too")
            + ". Somebody else may be writing to it. Publish again."
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the client from drawing bars between ours."""
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()
