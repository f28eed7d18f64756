"""One discussion at most at each model, once its quants are published, where a rule wants that."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dynquant.errors import HubUnavailableError, RequestError
from dynquant.jobs.job import Job, JobState
from dynquant.jobs.ports import JobBoard
from dynquant.watch.mention_text import MENTION_TITLE, mention_text
from dynquant.watch.ports import Mentioner, WatchState
from dynquant.watch.records import Mention
from dynquant.watch.rules import WatchConfig

__all__ = ["Mentions"]

_MAX_PER_SWEEP = 5
_MAX_LOOKED_AT = 100

_logger = logging.getLogger(__name__)


class Mentions:
    """Tells authors.

    It is written down that a model was mentioned after that was done; whoever dies in between
    finds the discussion at the model, and opens no other.

    Args:
        hub: Where discussions are opened.
        board: Where jobs are.
        state: Where it is written down.
        config: The rules as they are now.
    """

    def __init__(
        self, hub: Mentioner, board: JobBoard, state: WatchState, config: WatchConfig
    ) -> None:
        self._hub = hub
        self._board = board
        self._state = state
        self._wanted = {rule.name for rule in config.rules if rule.mention}

    def do(self, may_go_on: Callable[[], bool]) -> None:
        """Mention what has been published since.

        Raises:
            RetryLaterError: The database does not answer.
        """
        num_left = _MAX_PER_SWEEP
        for mention in self._state.mentions(limit=_MAX_LOOKED_AT):
            if not num_left or not may_go_on():
                return
            job = self._job(mention)
            if job is not None and not job.is_over:
                continue
            if job is None or job.state is not JobState.PUBLISHED or not self._is_wanted(mention):
                self._state.forget_mention(mention.repo_id)
                continue
            num_left -= 1
            try:
                self._tell(mention, job)
            except HubUnavailableError as error:
                _logger.warning("'%s' is mentioned later: %s", mention.repo_id, error)
                return

    def _tell(self, mention: Mention, job: Job) -> None:
        text = mention_text([each.repo_id for each in job.results])
        try:
            if self._hub.mention(mention.repo_id, title=MENTION_TITLE, text=text):
                _logger.info("A discussion was opened at '%s'", mention.repo_id)
        except RequestError as error:  # nobody may, or it is gone: nor will it be tried again
            _logger.warning("'%s' cannot be mentioned: %s", mention.repo_id, error)
        self._state.mentioned(mention.repo_id)

    def _job(self, mention: Mention) -> Job | None:
        try:
            return self._board.get(mention.job_id)
        except RequestError:
            return None

    def _is_wanted(self, mention: Mention) -> bool:
        return mention.rule in self._wanted
