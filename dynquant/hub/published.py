"""Whether the repos that jobs published are still on the Hub."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub.errors import RepositoryNotFoundError

from dynquant.hub.calls import TIMEOUT_SECS
from dynquant.hub.client import HubClient
from dynquant.jobs.job import PublishedRepo
from dynquant.report.finished_files import PLAN

__all__ = ["HubRepos"]


class HubRepos(HubClient):
    """Looks up published repos; a `dynquant.jobs.ports.PublishedRepos`.

    A private repo that the token cannot read counts as deleted. That costs little: the runner of
    the new attempt finds the repo, and publishes nothing.
    """

    def are_there(self, repos: Sequence[PublishedRepo]) -> bool:
        """Whether each of these repos exists, perhaps under a new name, and holds a plan.

        Raises:
            ModelNotFoundError: The token in use is refused.
        """
        return all(self._is_there(each.repo_id) for each in repos)

    def _is_there(self, repo_id: str) -> bool:
        def ask() -> bool:
            try:
                # The file names of a gated repo are public, too.
                info = self._api.model_info(repo_id, timeout=TIMEOUT_SECS)
            except RepositoryNotFoundError:
                return False
            return any(each.rfilename == PLAN for each in info.siblings or ())

        return self._call(ask, repo=repo_id, num_tries=1)  # a visitor waits for the answer
