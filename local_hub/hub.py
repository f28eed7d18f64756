"""The local Hub itself: what it knows, and how tests set it up."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from local_hub.answers import Request
from local_hub.faults import Fault
from local_hub.front import Front
from local_hub.lfs import Upload
from local_hub.machines import Machines
from local_hub.repos import DATE, Repo, folder_files
from local_hub.server import ServerThread
from local_hub.store import Key, Store

DEFAULT_PART_BYTES = 20 * 10**6


def account_id(name: str) -> str:
    """The stable id of the account that has had `name` from the beginning."""
    return _digest(f"account {name}")


def _digest(text: str) -> str:
    """Of the length of the Hub's own ids."""
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class LocalHub:
    """A Hub at `url`, to be used as a context.

    Routes run one at a time, in the thread of the server.

    Attributes:
        repos: (kind, id) → repo.
        tokens: Token → user. A token may write, unless `token_roles` says "read".
        token_roles: Token → "read", "write" or "fineGrained".
        permissions: Rights of a fine-grained token wherever its user may write.
        scopes: Token → user, organization or repo → its rights there alone; under the empty
            name its rights everywhere.
        expired_tokens: Tokens that are refused.
        orgs: User → organization → "read" or "write".
        hardware: User → their hardware, in the Hub's form.
        discreet: Users who do not show their hardware.
        accounts: User → stable id, of those whose name another account had before.
        renamed: Old id → new id.
        requests: All requests so far.
        faults: Faults to cause; the first that matches is taken.
        on_request: Called in the server's thread before a request is handled; it may add a fault
            for this very request.
        after_request: Called there once a request was answered, or failed.
        ignore_ranges: Whether whole files answer requests for a part.
        announces_xet: Whether files are said to be on Xet too, as nearly all are on the Hub.
        tells_sizes: Whether lists of files have sizes and hashes, as those of some mirrors do not.
        part_bytes: Uploads that are larger go in parts of this size.
        quota_bytes: Bound on the LFS files of a namespace together.
        machines: Jobs, and the machines that they run on; Jobs end with this Hub.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        port: int = 0,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        """Set up a hub.

        Args:
            folder: Where everything is kept, to go on with later; otherwise it is gone at the end.
            port: 0 for any that is free.
            clock: The time of commits and the like; otherwise they all happen at one fixed date.
        """
        self.tokens: dict[str, str] = {}
        self.token_roles: dict[str, str] = {}
        self.permissions: tuple[str, ...] = ("repo.write",)
        self.scopes: dict[str, dict[str, tuple[str, ...]]] = {}
        self.expired_tokens: set[str] = set()
        self.orgs: dict[str, dict[str, str]] = {}
        self.hardware: dict[str, list[Any]] = {}
        self.discreet: set[str] = set()
        self.renamed: dict[str, str] = {}
        self.accounts: dict[str, str] = {}
        self._num_born: Counter[Key] = Counter()
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.on_request: Callable[[Request], None] | None = None
        self.after_request: Callable[[Request], None] | None = None
        self.ignore_ranges = False
        self.announces_xet = False
        self.tells_sizes = True
        self.part_bytes = DEFAULT_PART_BYTES
        self.quota_bytes: int | None = None
        self.uploads: dict[str, Upload] = {}
        self.machines = Machines()
        # Lists by query; each notices when it is out of date.
        self.lists: dict[Any, Any] = {}
        self.store = Store(folder)
        self.repos: dict[Key, Repo] = {}
        self._clock = clock
        self._load()
        self._server = ServerThread(Front(self), port)
        self.url = f"http://127.0.0.1:{self._server.port}"
        # Another origin for the client, as the real Hub's storage is.
        self.cdn_url = f"http://localhost:{self._server.port}"

    def __enter__(self) -> LocalHub:
        self._server.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.machines.stop()
        self._server.stop()
        # Tests change repos without a request.
        self.save(self.repos)
        self.store.close()

    # To set the scene

    def add(
        self, repo_id: str, files: Mapping[str, bytes | Path] | Path, **attributes: Any
    ) -> Repo:
        """A new repo with one commit; `files` may be a folder."""
        repo = Repo(id=repo_id, **attributes)
        repo.hub_id = self.new_hub_id(repo.key)
        content = folder_files(files) if isinstance(files, Path) else files
        repo.commit(content, date=repo.last_modified)
        self.repos[repo.key] = repo
        return repo

    def add_user(
        self,
        name: str,
        *,
        token: str,
        role: str = "write",
        orgs: Mapping[str, str] | None = None,
        hardware: Iterable[Any] = (),
    ) -> None:
        """A user with a token; `orgs` names organizations and the user's role there."""
        self.tokens[token] = name
        self.token_roles[token] = role
        self.orgs.setdefault(name, {}).update(orgs or {})
        self.hardware.setdefault(name, []).extend(hardware)

    def account_id(self, name: str) -> str:
        """The stable id of an account; `accounts` has those that changed hands."""
        return self.accounts.get(name) or account_id(name)

    def new_hub_id(self, key: Key) -> str:
        """A stable id for a repo that is new under its name."""
        self._num_born[key] += 1
        return _digest(f"{'/'.join(key)} {self._num_born[key]}")

    def fail(self, pattern: str, **attributes: Any) -> Fault:
        self.faults.append(Fault(pattern, **attributes))
        return self.faults[-1]

    def asked(self, pattern: str) -> list[Request]:
        return [r for r in self.requests if re.search(pattern, f"{r.method} {r.path}")]

    # For the routes

    def now(self) -> str:
        if self._clock is None:
            return DATE
        return self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"

    def save(self, keys: Iterable[Key]) -> None:
        """Have what `keys` name survive the end of this process, if there is a folder."""
        self.store.save(keys, self.repos, self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "token_roles": self.token_roles,
            "expired_tokens": sorted(self.expired_tokens),
            "orgs": self.orgs,
            "hardware": self.hardware,
            "discreet": sorted(self.discreet),
            "renamed": self.renamed,
        }

    def _load(self) -> None:
        repos, settings = self.store.load()
        self.repos |= repos
        for name, value in settings.items():
            getattr(self, name).update(value)
