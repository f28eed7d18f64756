"""Discussions at other people's models: one of a title at most, however often it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable

from huggingface_hub import HfApi

from dynquant.hub.calls import HubCaller

__all__ = ["HubMentions"]


class HubMentions:
    """Opens discussions.

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
        self._name = ""

    def mention(self, repo_id: str, *, title: str, text: str) -> bool:
        """Open a discussion, unless one of ours with this title is there; whether it was opened.

        Raises:
            DestinationError: The repo is gone, or nobody may open discussions there.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        # Both in one call: what is tried again after an answer was lost looks first.
        return self._call(lambda: self._open(repo_id, title, text), repo=repo_id)

    def _open(self, repo_id: str, title: str, text: str) -> bool:
        self._name = self._name or str(self._api.whoami()["name"])
        ours = self._api.get_repo_discussions(
            repo_id, author=self._name, discussion_type="discussion"
        )
        if any(each.title == title for each in ours):
            return False
        self._api.create_discussion(repo_id, title, description=text)
        return True
