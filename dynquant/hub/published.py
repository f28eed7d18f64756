"""Whether what jobs published is still on the Hub."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from dynquant.hub.calls import TIMEOUT_SECS, HubCaller
from dynquant.jobs.job import PublishedRepo
from dynquant.report.finished_files import PLAN

__all__ = ["HubRepos"]


class HubRepos:
    """Asks the Hub for published repos; a `dynquant.jobs.ports.PublishedRepos`.

    A private repo that the token does not see counts as deleted. That costs little: the runner that
    makes it again finds it there, and publishes nothing.

    Args:
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).
        token: None is the one that huggingface_hub finds, False is none at all.
        sleep: Waits that many seconds between two tries.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = HfApi(endpoint=endpoint, token=token, library_name="dynquant")
        self._call = HubCaller.to_read(self._api.endpoint, sleep=sleep)

    def are_there(self, repos: Sequence[PublishedRepo]) -> bool:
        """Whether each of these repos is there, or has another name now, and holds a plan.

        Raises:
            ModelNotFoundError: The token in use is refused.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        return all(self._is_there(each.repo_id) for each in repos)

    def _is_there(self, repo_id: str) -> bool:
        def ask() -> bool:
            try:
                # Of a gated repo, too, everybody may see the names of its files.
                info = self._api.model_info(repo_id, timeout=TIMEOUT_SECS)
            except RepositoryNotFoundError:
                return False
            return any(each.rfilename == PLAN for each in info.siblings or ())

        return self._call(ask, repo=repo_id, num_tries=1)  # a person waits for the answer
