"""Whether the results of a finished job are still on the Hub."""

from __future__ import annotations

import logging

from dynquant.errors import DynquantError
from dynquant.jobs.job import Job
from dynquant.jobs.ports import PublishedRepos

__all__ = ["are_deleted"]

_logger = logging.getLogger(__name__)


def are_deleted(job: Job, published: PublishedRepos) -> bool:
    """Whether a published job's results were deleted; False if the Hub does not answer."""
    try:
        return not published.are_there(job.results)
    except DynquantError as error:
        _logger.warning("Whether a job's results are still on the Hub is unknown: %s", error)
        return False
