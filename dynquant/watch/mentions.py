"""Discussions at models whose quants are published, one at most for each, where a rule asks."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dynquant.errors import HubUnavailableError, RequestError
from dynquant.hub.mentions import HubMentions
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.job import Job, JobState
from dynquant.watch.config import WatchConfig
from dynquant.watch.state import DatabaseWatchState

__all__ = ["MENTION_TITLE", "open_discussions"]

MENTION_TITLE = "Quants of this model for MLX, made by dynquant"
"""By this title a discussion of ours is recognized, so it must never change."""

_TEXT = """\
This model has been quantized for [MLX](https://github.com/ml-explore/mlx), so that it runs on \
Macs with less memory:

{links}

Their cards compare the quants with the original. dynquant found the model automatically; this is \
the only message about it, also if its weights change.

If you do not want quants of your models, write `dynquant: false` into the metadata of the card, \
or reply here."""

_MAX_PER_SWEEP = 5
_MAX_LOOKED_AT = 100

_logger = logging.getLogger(__name__)


def open_discussions(
    hub: HubMentions,
    board: DatabaseBoard,
    state: DatabaseWatchState,
    config: WatchConfig,
    *,
    may_go_on: Callable[[], bool],
) -> None:
    """Open the discussions that are due.

    The state notes a mention after the discussion was opened. If the runner dies in between, the
    next one finds the discussion at the model and opens no other.

    Raises:
        RetryLaterError: The database does not answer.
    """
    wanted = {rule.name for rule in config.rules if rule.mention}
    num_left = _MAX_PER_SWEEP
    for mention in state.mentions(limit=_MAX_LOOKED_AT):
        if not num_left or not may_go_on():
            return
        job = _job(board, mention.job_id)
        if job is not None and not job.is_over:
            continue
        if job is None or job.state is not JobState.PUBLISHED or mention.rule not in wanted:
            state.forget_mention(mention.repo_id)
            continue
        num_left -= 1
        try:
            _open(hub, mention.repo_id, job)
        except HubUnavailableError as error:
            _logger.warning("'%s' is mentioned later: %s", mention.repo_id, error)
            return
        state.mentioned(mention.repo_id)


def _job(board: DatabaseBoard, job_id: str) -> Job | None:
    try:
        return board.get(job_id)
    except RequestError:
        return None


def _open(hub: HubMentions, repo_id: str, job: Job) -> None:
    links = "\n".join(f"- [{each.repo_id}](/{each.repo_id})" for each in job.results)
    try:
        if hub.mention(repo_id, title=MENTION_TITLE, text=_TEXT.format(links=links)):
            _logger.info("A discussion was opened at '%s'", repo_id)
    except RequestError as error:  # discussions are closed, or the model is gone
        _logger.warning("'%s' cannot be mentioned: %s", repo_id, error)
