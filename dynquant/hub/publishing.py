"""Publishes finished models to the Hub: one commit, on top of the head that was read, read back.

Readers see a whole model or no model. The weights are uploaded before anything refers to them, and
one commit then makes all files visible at once. A process that is killed on the way leaves at most
an empty repo, and the next try continues from the files that are uploaded already.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dynquant.errors import (
    CardError,
    DestinationError,
    HubUnavailableError,
    InvalidModelError,
)
from dynquant.hub.accounts import Account, account_of
from dynquant.hub.calls import TIMEOUT_SECS
from dynquant.hub.client import HubClient
from dynquant.hub.local_files import LocalFile, changed_meanwhile, local_files
from dynquant.hub.target_repo import TargetRepo
from dynquant.hub.transfers import no_progress_bars
from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.progress import OnStep, Progress
from dynquant.publish import PublishedModel
from dynquant.report.artefacts import origin_in
from dynquant.report.finished_files import CARD, PLAN

__all__ = ["HubPublisher"]

_CONFLICTS = frozenset({409, 412})
_PAUSES_SECS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""After each commit that was refused because another commit came first."""

_LARGE_BYTES = 10**6
"""Files of this size are uploaded one by one, so that each is retried by itself."""

OnStored = Callable[[Iterable[str]], None]
"""Called with the names of files that the Hub holds now."""

_logger = logging.getLogger(__name__)


class HubPublisher(HubClient):
    """Publishes folders; a `publish.ModelPublisher`."""

    _access = "write to"
    _refusal = DestinationError

    @property
    def hub_url(self) -> str:
        """Address of the Hub."""
        return str(self._api.endpoint)

    def check(self, repo_id: str, *, origin: Origin, access: Access) -> None:
        """Refuse before any work when a quant of `origin` could not be published to `repo_id`.

        Args:
            repo_id: `namespace/name`.
            origin: The original.
            access: Visibility and gate of the quant.

        Raises:
            DestinationError: There is no token, it may not write there, the repo holds files
                that are not a quant of `origin`, or more people may read it than `access` allows.
        """
        self.account().require_may_publish(repo_id)
        if (remote := self._remote(repo_id)) is not None:
            remote.require_not_moved(repo_id)
            self._require_same_origin(remote, origin)
            remote.require_no_more_open(access)

    def published(self, repo_id: str) -> tuple[PublishedModel, str] | None:
        """The model that dynquant published there, and its plan as text; None if there is none."""
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
        """Make the repo hold exactly the files of `folder`, in one commit.

        Nothing is committed if it does already. An older version of the same model is updated,
        and stays in the history.

        Args:
            folder: A finished model.
            repo_id: `namespace/name`; made if it is not there.
            origin: The original.
            title: Of the commit.
            access: Visibility and gate of the quant. A new or empty repo gets them before anything
                is sent; a repo that holds a quant has to have them already.
            progress: Shows the step `publish`, in bytes that the Hub holds.

        Raises:
            DestinationError: See `check`.
            CardError: The Hub rejects the metadata of the card; nothing was sent.
            VerificationError: The files on the Hub differ from those in `folder`.
            HubQuotaError: The account has no storage left.
            HubUnavailableError: Network, rate limit, 5xx. Nothing was published.
        """
        files = local_files(folder)
        if PLAN not in files:
            raise InvalidModelError(
                f"'{folder.name}' is no folder that dynquant made: it has no {PLAN}. Pass a folder "
                "that 'dynquant quantize' wrote."
            )
        self.account().require_may_publish(repo_id)
        there = self._remote(repo_id)
        if there is not None:
            there.require_not_moved(repo_id)
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
        remote: TargetRepo,
        files: Mapping[str, LocalFile],
        *,
        origin: Origin,
        title: str,
        access: Access,
        on_stored: OnStored,
    ) -> PublishedModel:
        """Commit until the repo holds `files`: once, unless another client commits meanwhile."""
        is_new = False
        for pause_secs in _PAUSES_SECS:
            self._require_same_origin(remote, origin)
            remote.require_no_more_open(access)
            changed = {name: file for name, file in files.items() if not remote.has(name, file)}
            stale = remote.names_to_delete(files)
            on_stored(set(files) - set(changed))
            if not changed and not stale:
                break
            is_new = True
            try:
                made = self._commit(remote, changed, stale, title=title, on_stored=on_stored)
            except _StaleParentError:
                _logger.info("'%s' changed meanwhile; looking at it again", remote.repo_id)
                # A random pause, so that two writers do not collide again.
                self._call.sleep(pause_secs * random.uniform(0.5, 1.5))  # noqa: S311
                remote = self._require_remote(remote.repo_id)
            else:
                # Not the head: the Hub may still answer with the head of before.
                remote = self._remote(remote.repo_id, at=made) or self._require_remote(
                    remote.repo_id
                )
        remote.require_whole(files)
        return self._model(remote, is_new=is_new)

    def account(self) -> Account:
        """The account of the token in use, and where the token may publish.

        Raises:
            DestinationError: There is no token, or the Hub does not accept it.
        """
        return account_of(self._call(self._api.whoami, repo="the account in use"))

    def _remote(self, repo_id: str, *, at: str | None = None) -> TargetRepo | None:
        """The repo at its head, or at a commit; None if there is no such repo or commit."""

        def ask() -> TargetRepo | None:
            try:
                info = self._api.model_info(
                    repo_id, revision=at, files_metadata=True, timeout=TIMEOUT_SECS
                )
            except (RepositoryNotFoundError, RevisionNotFoundError):
                return None
            return TargetRepo.of(info)

        return self._call(ask, repo=repo_id)

    def _require_remote(self, repo_id: str) -> TargetRepo:
        if (remote := self._remote(repo_id)) is None:
            raise HubUnavailableError(
                f"'{repo_id}' vanished from the Hub while it was being published. Publish again."
            )
        return remote

    def _require_same_origin(self, repo: TargetRepo, origin: Origin) -> None:
        """Refuse a repo with files that are not a quant of `origin`."""
        if not repo.is_empty:
            repo.require_plan()
            repo.require_origin(origin_in(self._read_plan(repo)), origin)

    def _require_valid_card(self, repo_id: str, card: Path) -> None:
        """Have the Hub check the card, which the client itself does only after all uploads."""
        try:
            content = card.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CardError(
                f"The card of '{repo_id}' is no text in UTF-8. Save README.md as UTF-8, and "
                "publish again."
            ) from error
        self._call(lambda: self._api._validate_yaml(content), repo=repo_id)  # noqa: SLF001

    def _read_plan(self, remote: TargetRepo) -> str:
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
            # The Hub lists a repo that was renamed without hashes.
            file = LocalFile(path=path, num_bytes=path.stat().st_size)
            if remote.oids[PLAN] and not file.is_called(remote.oids[PLAN]):
                raise HubUnavailableError(
                    f"The plan of '{remote.repo_id}' arrived damaged. Try again."
                )
            return path.read_text(encoding="utf-8", errors="replace")

    def _create(self, repo_id: str, *, private: bool) -> TargetRepo:
        self._call(
            lambda: self._api.create_repo(
                repo_id, visibility="private" if private else "public", exist_ok=True
            ),
            repo=repo_id,
        )
        return self._require_remote(repo_id)

    def _tightened(self, remote: TargetRepo, access: Access) -> TargetRepo:
        """Make an empty repo as closed as `access`, and read it back.

        Raises:
            DestinationError: The Hub says that it is still more open.
        """
        settings: dict[str, Any] = {}
        if access.is_private and not remote.access.is_private:
            settings["visibility"] = "private"
        if remote.access.has_weaker_gate_than(access):  # also if private: it may be opened later
            settings["gated"] = "auto" if access.gated == "auto" else "manual"
        if not settings:
            return remote
        repo_id = remote.repo_id
        self._call(lambda: self._api.update_repo_settings(repo_id, **settings), repo=repo_id)
        for pause_secs in (0.0, *_PAUSES_SECS):
            self._call.sleep(pause_secs)  # the Hub may answer with the old settings for a while
            remote = self._require_remote(repo_id)
            if not remote.access.is_more_open_than(access):
                return remote
        raise remote.too_open(access)

    def _commit(
        self,
        remote: TargetRepo,
        changed: Mapping[str, LocalFile],
        stale: Sequence[str],
        *,
        title: str,
        on_stored: OnStored,
    ) -> str:
        """Upload every changed file, then commit them all at once; returns the commit.

        Raises:
            _StaleParentError: The repo has changed since it was read.
        """
        additions = {name: _addition(name, file) for name, file in changed.items()}
        deletions = [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in stale]
        with no_progress_bars():
            for name, addition in additions.items():
                if changed[name].num_bytes >= _LARGE_BYTES:
                    self._call(
                        partial(self._api.preupload_lfs_files, remote.repo_id, [addition]),
                        repo=remote.repo_id,
                    )
                    on_stored([name])
            made = self._call(
                lambda: self._send(remote, [*additions.values(), *deletions], title),
                repo=remote.repo_id,
            )
        on_stored(changed)
        return made

    def _send(
        self,
        remote: TargetRepo,
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

    def _model(self, remote: TargetRepo, *, is_new: bool) -> PublishedModel:
        return PublishedModel(
            repo_id=remote.repo_id,
            commit_sha=remote.head,
            url=f"{self._api.endpoint}/{remote.repo_id}",
            is_new=is_new,
        )


class _StaleParentError(Exception):
    """The repo has changed since it was read; perhaps by an earlier try of this commit."""


def _addition(name: str, file: LocalFile) -> CommitOperationAdd:
    """A file to upload, with its current content.

    Small files are sent from memory. For a large file the client sends the hash first, and the Hub
    rejects content with another hash.

    Raises:
        InvalidModelError: It has changed since it was found.
    """
    sha256 = file.sha256  # of the plain file that was found; `path` may be a link by now
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
