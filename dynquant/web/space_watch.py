"""The watcher as a Space sees it: it is with a runner, which posts how it is and gets errands back.

Nothing reaches a runner from a Space, but it posts every few seconds anyway: what is to be done
stands in the answer. What is lost on the way costs nothing but time, since a sweep
finds every model that a webhook told of.
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
_ASKED = "The runner hears of it within half a minute."


class SpaceWatch:
    """A `ports.WatchPort` in front of a watcher that is elsewhere.

    Args:
        snapshots: What runners post.
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
                "The watcher runs with a runner, and none that has one was heard of in the last "
                "minutes. Rules are set there: DYNQUANT_WATCH_CONFIG."
            )
        return status

    def sweep(self) -> str:
        """See `WatchPort`."""
        if self.status().is_paused:
            raise RequestError("The watcher is paused. Let it go on first.")
        return self._ask(WatchAct.SWEEP)

    def pause(self) -> str:
        """See `WatchPort`."""
        return self._ask(WatchAct.PAUSE)

    def resume(self) -> str:
        """See `WatchPort`."""
        return self._ask(WatchAct.RESUME)

    def covers(self, repo_id: str) -> bool:
        """Whether some rule of the runner may speak of a repo of this name.

        Raises:
            RetryLaterError: Nobody has told of rules.
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
        """What waits for the runner, which takes it along."""
        with self._lock:
            errands = WatchRequests(look_at=tuple(self._look_at), act=self._act)
            self._look_at.clear()
            self._act = None
        return errands

    def _ask(self, act: WatchAct) -> str:
        with self._lock:
            self._act = act
        return _ASKED
