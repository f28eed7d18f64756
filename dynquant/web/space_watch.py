"""The watcher of a runner, as a Space shows and controls it.

A Space cannot reach a runner, but the runner posts every few seconds: the Space sends its requests
in the answers. A lost request only costs time, since sweeps find every model that a webhook names.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from dynquant.errors import RequestError, RetryLaterError
from dynquant.watch.rules import may_cover
from dynquant.watch.status import WatchAct, WatchRequests, WatchStatus
from dynquant.web.snapshots import Snapshots

__all__ = ["SpaceWatch"]

_MAX_WAITING = 1_000


class SpaceWatch:
    """A `ports.WatchPort` in front of a runner's watcher.

    Args:
        snapshots: The boards that runners post.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._lock = threading.Lock()
        self._look_at: OrderedDict[str, None] = OrderedDict()
        self._act: WatchAct | None = None

    def status(self) -> WatchStatus:
        """See `WatchPort`."""
        status = self._snapshots.watch()
        if status is None:
            raise RetryLaterError(
                "The watcher runs on a runner, and no runner with a watcher has posted in the last "
                "minutes. Its rules are set there: DYNQUANT_WATCH_CONFIG."
            )
        return status

    def control(self, act: WatchAct) -> str:
        """See `WatchPort`."""
        if act is WatchAct.SWEEP and self.status().is_paused:
            raise RequestError("The watcher is paused. Resume it first.")
        with self._lock:
            self._act = act
        return "The runner gets this within half a minute."

    def covers(self, repo_id: str) -> bool:
        """Whether a rule of the runner may cover a repo of this name.

        Raises:
            RetryLaterError: The rules are unknown.
        """
        config = self.status().config
        if config is None:
            raise RetryLaterError("The rules of the runner cannot be read.")
        return may_cover(repo_id, config)

    def look_at(self, repo_id: str) -> None:
        """Have the runner look at a repo soon."""
        with self._lock:
            if len(self._look_at) < _MAX_WAITING:
                self._look_at[repo_id] = None

    def collect(self) -> WatchRequests:
        """Take the pending requests, for the answer to a runner's post."""
        with self._lock:
            requests = WatchRequests(look_at=tuple(self._look_at), act=self._act)
            self._look_at.clear()
            self._act = None
        return requests
