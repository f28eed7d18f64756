"""What the watcher keeps between its sweeps, and what it reports of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dynquant.jobs.request import JobRequest
from dynquant.watch.skips import Skip

__all__ = [
    "Cursor",
    "Mention",
    "Order",
    "PostponedModel",
    "SeenModel",
    "SweepReport",
    "report_from_json",
    "report_to_json",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """How far the lists of the Hub were read, by the Hub's own times.

    Attributes:
        since: When the watch began; weights that are older are no news.
        created: The newest creation that was seen.
        modified: The newest change that was seen.
    """

    since: datetime
    created: datetime
    modified: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenModel:
    """A model that was looked at with everything that the Hub tells.

    Attributes:
        sha: The commit that was looked at last.
        fingerprint: Of the weights there, or of those queued if there are any.
        skip: Why it was not queued then; None if it was.
        job_id: Of the last job that was queued for it; empty if there is none.
    """

    repo_id: str
    sha: str
    fingerprint: str
    skip: Skip | None = None
    job_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostponedModel:
    """A model to be looked at again."""

    repo_id: str
    due: datetime
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A job that is decided upon. It is written down before it is queued.

    Attributes:
        job_id: What the queue will call it.
        request: With the commit as its revision.
        num_bytes: Of what it publishes, estimated.
        hours: That it takes, estimated.
    """

    job_id: str
    request: JobRequest
    rule: str
    num_bytes: int
    hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """A model whose author is to be told, once its job has published something."""

    repo_id: str
    rule: str
    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What one sweep came to.

    Attributes:
        num_seen: Models that were looked at, each counted once.
        num_matched: Those that a rule took.
        queued: Repo ids of those that were queued.
        skipped: Reason → number.
        num_calls: Requests to the Hub.
        is_dry_run: Whether nothing was queued or kept.
        sentence: What went wrong; empty if all was done.
    """

    started_at: datetime
    secs: float
    num_seen: int = 0
    num_matched: int = 0
    queued: tuple[str, ...] = ()
    skipped: Mapping[Skip, int] = field(default_factory=dict)
    num_calls: int = 0
    is_dry_run: bool = False
    sentence: str = ""

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.skipped.items())
        parts = (
            f"{'Dry run' if self.is_dry_run else 'Sweep'}: {self.num_seen} models seen",
            f"{self.num_matched} matched",
            f"{len(self.queued)} {'to be queued' if self.is_dry_run else 'queued'}",
            f"{sum(self.skipped.values())} skipped{f' ({reasons})' if reasons else ''}",
            f"{self.num_calls} calls",
            f"{self.secs:.1f} s",
        )
        text = ", ".join(parts) + "."
        return " ".join(filter(None, (text, self.sentence)))


def report_to_json(report: SweepReport) -> dict[str, Any]:
    """`report` as JSON types."""
    return {
        "started_at": report.started_at.isoformat(),
        "secs": round(report.secs, 3),
        "seen": report.num_seen,
        "matched": report.num_matched,
        "queued": list(report.queued),
        "skipped": {str(reason): count for reason, count in sorted(report.skipped.items())},
        "calls": report.num_calls,
        "dry_run": report.is_dry_run,
        "sentence": report.sentence,
    }


def report_from_json(raw: Mapping[str, Any]) -> SweepReport:
    """The report that `report_to_json` wrote."""
    return SweepReport(
        started_at=datetime.fromisoformat(raw["started_at"]),
        secs=raw["secs"],
        num_seen=raw["seen"],
        num_matched=raw["matched"],
        queued=tuple(raw["queued"]),
        skipped={Skip(reason): count for reason, count in raw["skipped"].items()},
        num_calls=raw["calls"],
        is_dry_run=raw["dry_run"],
        sentence=raw["sentence"],
    )
