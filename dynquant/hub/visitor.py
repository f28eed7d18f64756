"""What a visitor does with their own token: say who they are, name their Macs, copy a model.

The token comes with each call and is kept nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from huggingface_hub import HfApi

from dynquant.errors import DestinationError, DynquantError, Reason
from dynquant.hub.calls import HubCaller
from dynquant.hub.hardware import Mac, ask_for_profile, macs_on
from dynquant.hub.publishing import Account, HubPublisher

__all__ = ["HubVisitor"]


class HubVisitor:
    """One person's access to the Hub.

    Args:
        token: Theirs.
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).
        sleep: Waits that many seconds between two tries.
    """

    def __init__(
        self,
        token: str,
        *,
        endpoint: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._token = token
        self._publisher = HubPublisher(endpoint=endpoint, token=token, sleep=sleep)
        self._api = HfApi(endpoint=endpoint, token=token, library_name="dynquant")
        self._call = HubCaller.to_write(self._api.endpoint, sleep=sleep)

    def account(self) -> Account:
        """Whose token it is.

        Raises:
            DestinationError: The Hub does not accept it.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        return self._publisher.account()

    def macs(self) -> tuple[Mac, ...]:
        """The Macs that they show on their profile, the one to think of first.

        Asked once, and for some seconds at most. What an app is told of who signed in with it
        needs no name, so nobody has to ask `whoami` before, which the Hub allows rarely.

        Raises:
            DestinationError: The Hub does not accept the token.
            HubUnavailableError: It does not say so at once.
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
        """Copy several repos, see `copy`; one that cannot be copied keeps no other from it.

        Raises:
            DestinationError, HubUnavailableError, HubQuotaError: The first that went wrong; it
                says which copies there are.
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

        Who may read it may be fewer than before, and never more: a private repo stays private.
        Nothing is downloaded. Doing it again is harmless, and a repo of that name that was
        there before is left as it is; it counts as the copy where it holds the same plan.

        Raises:
            DestinationError: The account may not write there, or the name is taken.
            HubUnavailableError: Network, rate limit, 5xx.
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
        """Whether both repos hold one and the same result of dynquant, as an earlier copy does."""
        there, original = map(self._publisher.published, (copy, repo_id))
        return there is not None and original is not None and there[1] == original[1]
