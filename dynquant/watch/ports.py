"""What the watcher speaks to; wired at the command line's edge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Literal, Protocol

from dynquant.model.candidate import Candidate
from dynquant.watch.records import Cursor, Mention, Order, PostponedModel, SeenModel, SweepReport

__all__ = ["Mentioner", "NewModels", "SweepLock", "WatchState"]


class NewModels(Protocol):
    """What is new on the Hub; see `hub.new_models.HubNewModels`."""

    @property
    def num_calls(self) -> int:
        """Requests so far."""
        ...

    def listed(self, order: Literal["createdAt", "lastModified"]) -> Iterator[Candidate]:
        """All models, the latest first."""
        ...

    def look_up(self, repo_id: str) -> Candidate:
        """A model with everything that the Hub tells of it."""
        ...

    def fingerprint(self, repo_id: str, revision: str) -> str:
        """Of the weights at a commit; empty if the commit is gone."""
        ...

    def weights_uploaded_at(self, candidate: Candidate) -> datetime:
        """When the weights of a model, which was looked up, last changed."""
        ...

    def dynquants_of(self, repo_id: str) -> tuple[str, ...]:
        """The repos that dynquant made of a model."""
        ...

    def source_sha(self, quant: str) -> str:
        """The commit that a repo of dynquant was made of; empty if it does not say."""
        ...


class WatchState(Protocol):
    """What the watcher remembers; see `watch.state.DatabaseWatchState`."""

    def cursor(self) -> Cursor | None:
        """Where the last sweep ended; None before the first."""
        ...

    def save_cursor(self, cursor: Cursor) -> None:
        """Remember how far the lists were read."""
        ...

    def known(self, repo_id: str) -> SeenModel | None:
        """What was found out about a model; None if it is new."""
        ...

    def remember(self, known: SeenModel, *, later: PostponedModel | None = None) -> None:
        """Keep what was found out; with `later`, to look at the model again."""
        ...

    def postpone(self, later: PostponedModel) -> None:
        """Look at a model again that was not looked at closely."""
        ...

    def forget(self, repo_id: str) -> None:
        """Do not look at a model again by ourselves."""
        ...

    def due(self, now: datetime, *, limit: int) -> tuple[PostponedModel, ...]:
        """The models that are to be looked at again."""
        ...

    def later(self, repo_id: str) -> PostponedModel | None:
        """When a model is to be looked at again; None if it is not."""
        ...

    def order(self, order: Order, known: SeenModel, *, mention: bool) -> None:
        """Write down a job before it is queued, and that its model is dealt with."""
        ...

    def mentions(self, *, limit: int) -> tuple[Mention, ...]:
        """The models whose authors are to be told, and were not."""
        ...

    def mentioned(self, repo_id: str) -> None:
        """A model's author was told, and will not be told again."""
        ...

    def forget_mention(self, repo_id: str) -> None:
        """There is nothing to tell a model's author."""
        ...

    def submitted(self, job_id: str) -> None:
        """The queue has a job that was written down."""
        ...

    def unsubmitted(self) -> tuple[Order, ...]:
        """The jobs that were written down and may not be in the queue."""
        ...

    def spent(self, rule: str, *, within_secs: float) -> tuple[int, float]:
        """Bytes and hours of what a rule has ordered lately."""
        ...

    def add_report(self, report: SweepReport) -> None:
        """Keep a report."""
        ...

    def set_paused(self, paused: bool) -> None:  # noqa: FBT001
        """Stop sweeping, or go on with it."""
        ...


class Mentioner(Protocol):
    """Where authors are told; see `hub.mentions.HubMentions`."""

    def mention(self, repo_id: str, *, title: str, text: str) -> bool:
        """Open a discussion, unless one of ours with this title is there.

        Raises:
            RequestError: It cannot be opened.
            HubUnavailableError: Network, rate limit, 5xx.
        """
        ...


class SweepLock(Protocol):
    """Whose turn it is to sweep; see `watch.state.DatabaseWatchState`."""

    def begin(
        self, holder: str, *, lease_secs: float, is_due: Callable[[datetime | None, datetime], bool]
    ) -> datetime | None:
        """Take the turn; the time if it is this caller's."""
        ...

    def renew(self, holder: str, *, lease_secs: float) -> bool:
        """Keep the turn; False if another has it, or the watcher was paused."""
        ...

    def end(self, holder: str, *, began_at: datetime) -> None:
        """Give the turn back after a sweep that came to its end."""
        ...
