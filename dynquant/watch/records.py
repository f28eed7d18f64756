"""Records that the watcher keeps between its sweeps, and the report of a sweep."""

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
    """The position in the Hub's lists, by the Hub's own times.

    Attributes:
        since: When the watch began; older weights do not count as new.
        created: The newest creation that was seen.
        modified: The newest change that was seen.
    """

    since: datetime
    created: datetime
    modified: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenModel:
    """The last close look at a model.

    Attributes:
        sha: The commit of that look.
        fingerprint: Of the weights at that commit, or of those that were queued.
        skip: Why it was not queued then; None if it was.
        job_id: Of the last job that was queued for it; empty before the first job.
    """

    repo_id: str
    sha: str
    fingerprint: str
    skip: Skip | None = None
    job_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PostponedModel:
    """A model that is due for another look: first postponed at `since`, next looked at `due`."""

    repo_id: str
    due: datetime
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A job of the watcher, stored before it is queued.

    Attributes:
        job_id: Its id in the queue.
        request: With the commit as its revision.
        num_bytes: Estimated size of the published repos.
        hours: Estimated work.
    """

    job_id: str
    request: JobRequest
    rule: str
    num_bytes: int
    hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """A model whose author is to be told, once its job has published."""

    repo_id: str
    rule: str
    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """The result of one sweep.

    Attributes:
        num_seen: Models that were looked at, each counted once.
        num_matched: Those that a rule took.
        queued: Repo ids of those that were queued.
        skipped: Reason → number.
        num_calls: Requests to the Hub.
        is_dry_run: Whether nothing was queued or kept.
        sentence: The problem, if the sweep is incomplete; else empty.
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
