"""A Job of the Hub, as far as dynquant looks at it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

__all__ = ["ACTIVE", "RentedJob", "Stage", "why_it_ended"]


class Stage(StrEnum):
    """The Hub's stages of a Job."""

    SCHEDULING = "SCHEDULING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    CANCELED = "CANCELED"
    ERROR = "ERROR"
    DELETED = "DELETED"

    @classmethod
    def _missing_(cls, value: object) -> Stage:  # noqa: ARG003
        """Take a stage that a later Hub adds for one of a Job that is not over."""
        return cls.RUNNING

    @property
    def is_over(self) -> bool:
        """Whether the Job runs no more and never will again."""
        return self not in ACTIVE


ACTIVE = (Stage.SCHEDULING, Stage.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class RentedJob:
    """A Job.

    Attributes:
        namespace: The account that pays.
        id: The Hub's id.
        url: Its page.
        stage: Its stage.
        message: The Hub's words on how it ended; empty without any.
        flavor: The machine that it runs on.
        running_secs: How long it has run.
        created_at: When it was started.
        labels: The labels that it was started with.
    """

    namespace: str
    id: str
    url: str
    stage: Stage
    message: str
    flavor: str
    running_secs: int
    created_at: datetime
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name that `--follow` and `--cancel` take."""
        return f"{self.namespace}/{self.id}"

    def to_json(self) -> dict[str, Any]:
        """As JSON types."""
        return asdict(self) | {"created_at": self.created_at.isoformat()}


def why_it_ended(job: RentedJob) -> str:
    """A sentence on a Job that ended before its conversion did."""
    said = f" ({job.message})" if job.message else ""
    if job.stage is Stage.CANCELED:
        return "The Job was cancelled. Models that it published before stay."
    if job.stage is Stage.DELETED:
        return "The Job was deleted. Models that it published before stay."
    if "timeout" in job.message.lower():
        return (
            f"The Hub ended the Job at its timeout{said}. Start it again with a larger "
            "--timeout-mins; models that it had published are not made again."
        )
    return (
        f"The Job failed{said}. The last lines of its log say why; if it was evicted, start it "
        f"again. The log stays at {job.url}."
    )
