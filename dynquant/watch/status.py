"""What people are shown of the watcher and may ask of it, also in JSON between runner and Space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from dynquant.watch.records import SeenModel, SweepReport, report_from_json, report_to_json
from dynquant.watch.rules import Rule, WatchConfig
from dynquant.watch.skips import Skip

__all__ = [
    "WatchAct",
    "WatchRequests",
    "WatchStatus",
    "errands_from_json",
    "errands_to_json",
    "status_from_json",
    "status_to_json",
]

_MAX_LOOKS = 1_000
_MAX_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchStatus:
    """How the watcher is set up, and what it did lately.

    Attributes:
        config: The rules; None if they cannot be read.
        problem: Why they cannot; empty if they can.
        cron: When it sweeps, in UTC.
        is_sweeping: Whether a sweep runs now.
        reports: Of the last sweeps, the latest first.
        latest: The models that were looked at closely, the latest first.
    """

    config: WatchConfig | None
    problem: str = ""
    cron: str
    is_paused: bool = False
    is_sweeping: bool = False
    reports: tuple[SweepReport, ...] = ()
    latest: tuple[SeenModel, ...] = ()


class WatchAct(StrEnum):
    """What an operator has the watcher do."""

    SWEEP = "sweep"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRequests:
    """What a Space asks of the watcher, in its answer to a post of the runner.

    Attributes:
        look_at: Repos that changed, as a webhook said.
        act: What its operator wants; None for nothing.
    """

    look_at: tuple[str, ...] = ()
    act: WatchAct | None = None


def errands_to_json(errands: WatchRequests) -> dict[str, Any]:
    """`errands` as JSON types."""
    return asdict(errands)


def errands_from_json(raw: Mapping[str, Any]) -> WatchRequests:
    """The errands that `errands_to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: They are none.
    """
    names = raw["look_at"][:_MAX_LOOKS]
    act = raw["act"]
    return WatchRequests(
        look_at=tuple(str(name)[:_MAX_NAME] for name in names),
        act=None if act is None else WatchAct(act),
    )


def status_to_json(status: WatchStatus) -> dict[str, Any]:
    """`status` as JSON types. Who opted out stays where the rules are."""
    config = status.config
    return {
        "config": None if config is None else asdict(replace(config, opt_out=())),
        "problem": status.problem,
        "cron": status.cron,
        "is_paused": status.is_paused,
        "is_sweeping": status.is_sweeping,
        "reports": list(map(report_to_json, status.reports)),
        "latest": list(map(asdict, status.latest)),
    }


def status_from_json(raw: Mapping[str, Any]) -> WatchStatus:
    """The status that `status_to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: It is none.
    """
    config = raw["config"]
    return WatchStatus(
        config=None if config is None else _config(config),
        problem=str(raw["problem"]),
        cron=str(raw["cron"]),
        is_paused=bool(raw["is_paused"]),
        is_sweeping=bool(raw["is_sweeping"]),
        reports=tuple(map(report_from_json, raw["reports"])),
        latest=tuple(map(_known, raw["latest"])),
    )


def _config(raw: Mapping[str, Any]) -> WatchConfig:
    rules = tuple(Rule(**_fields(each)) for each in raw["rules"])
    return WatchConfig(**{**_fields(raw), "rules": rules})


def _fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(each) if isinstance(each, list) else each for name, each in raw.items()}


def _known(raw: Mapping[str, Any]) -> SeenModel:
    return SeenModel(**{**raw, "skip": Skip(raw["skip"]) if raw["skip"] else None})
