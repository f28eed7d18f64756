"""What a visitor does with their own token: say who they are, name their Macs, copy a model.

The token comes with each call and is kept nowhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from huggingface_hub import HfApi

from dynquant.errors import DestinationError, Reason
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

    def copy(self, repo_id: str, *, namespace: str, private: bool) -> str:
        """Copy a repo within the Hub, under its own name; returns the id of the copy.

        Who may read it may be fewer than before, and never more: a private repo stays private.
        Nothing is downloaded. Doing it again is harmless, and a repo of that name that was
        there before is left as it is.

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
