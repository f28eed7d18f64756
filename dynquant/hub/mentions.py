"""Discussions at other people's models: at most one per title, also if a call is repeated."""

from __future__ import annotations

from dynquant.errors import DestinationError
from dynquant.hub.client import HubClient

__all__ = ["HubMentions"]


class HubMentions(HubClient):
    """Opens discussions."""

    _access = "write to"
    _refusal = DestinationError

    _name = ""

    def mention(self, repo_id: str, *, title: str, text: str) -> bool:
        """Open a discussion, unless there is one of ours with this title; whether it was opened.

        Raises:
            DestinationError: The repo is gone, or discussions are disabled there.
        """
        # Both in one call, so that a retry after a lost answer looks first.
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
