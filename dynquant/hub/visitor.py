"""A visitor's calls with their own token: their account, the Macs on their profile, copies.

The token is not stored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from dynquant.errors import DestinationError, DynquantError, Reason
from dynquant.hub.accounts import Account
from dynquant.hub.client import HubClient
from dynquant.hub.hardware import Mac, ask_for_profile, macs_on
from dynquant.hub.publishing import HubPublisher

__all__ = ["HubVisitor"]


class HubVisitor(HubClient):
    """A visitor's access to the Hub.

    Args:
        token: The visitor's.
        endpoint, sleep: As for `HubClient`.
    """

    _access = "write to"
    _refusal = DestinationError

    def __init__(
        self,
        token: str,
        *,
        endpoint: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(endpoint=endpoint, token=token, sleep=sleep)
        self._token = token
        self._publisher = HubPublisher(endpoint=endpoint, token=token, sleep=sleep)

    def account(self) -> Account:
        """The visitor's account.

        Raises:
            DestinationError: The Hub does not accept it.
        """
        return self._publisher.account()

    def macs(self) -> tuple[Mac, ...]:
        """The Macs on the visitor's profile, the primary one first.

        One request, limited to some seconds. The profile is looked up by the token, without a
        request to `whoami`, whose rate limit is low.

        Raises:
            DestinationError: The Hub does not accept the token.
            HubUnavailableError: It does not answer in time.
        """
        profile = self._call(
            lambda: ask_for_profile(self._api.endpoint, self._token),
            repo="the profile of a visitor",
            num_tries=1,
        )
        return macs_on(profile)

    def copy_all(
        self, repo_ids: Sequence[str], *, namespace: str, private: bool
    ) -> tuple[str, ...]:
        """Copy several repos, see `copy`; a failure does not keep the others from being copied.

        Raises:
            DestinationError, HubUnavailableError, HubQuotaError: The first failure; it also says
                which repos were copied.
        """
        copies, errors = [], {}
        for repo_id in repo_ids:
            try:
                copies.append(self.copy(repo_id, namespace=namespace, private=private))
            except DynquantError as error:
                errors[repo_id] = error
        if not errors:
            return tuple(copies)
        first = next(iter(errors.values()))
        if not copies:
            raise first
        raise type(first)(
            f"{first} Copied: {', '.join(copies)}. Not copied: {', '.join(errors)}.",
            reason=first.reason,
        ) from first

    def copy(self, repo_id: str, *, namespace: str, private: bool) -> str:
        """Copy a repo within the Hub, under its own name; returns the id of the copy.

        A private repo stays private. Nothing is downloaded. A repeated call is harmless: an
        existing repo of that name is not changed, and counts as the copy if it has the same plan.

        Raises:
            DestinationError: The account may not write there, or the name is taken.
        """
        target = f"{namespace}/{repo_id.rpartition('/')[2]}"
        if target == repo_id:
            raise DestinationError(
                f"'{repo_id}' is in '{namespace}' already, so there is nothing to copy.",
                reason=Reason.DESTINATION_TAKEN,
            )
        if self._call(lambda: self._api.repo_exists(target), repo=target):
            if self._holds_the_same(target, repo_id):
                return target
            raise DestinationError(
                f"There is a '{target}' already. Rename or delete it on the Hub, then copy again.",
                reason=Reason.DESTINATION_TAKEN,
            )
        self._call(
            lambda: self._api.duplicate_repo(
                repo_id, target, private=private or None, exist_ok=True
            ),
            repo=target,
        )
        return target

    def _holds_the_same(self, copy: str, repo_id: str) -> bool:
        """Whether both repos hold the same plan, as an earlier copy does."""
        there, original = map(self._publisher.published, (copy, repo_id))
        return there is not None and original is not None and there[1] == original[1]
