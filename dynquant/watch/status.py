"""The watcher's status and the requests to it, also as JSON between runner and Space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from dynquant.watch.config import Rule, WatchConfig
from dynquant.watch.records import SeenModel, SweepReport, report_from_json, report_to_json
from dynquant.watch.skips import Skip

__all__ = [
    "WatchAct",
    "WatchRequests",
    "WatchStatus",
    "requests_from_json",
    "requests_to_json",
    "status_from_json",
    "status_to_json",
]

_MAX_LOOKS = 1_000
_MAX_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchStatus:
    """The watcher's rules, and its last sweeps.

    Attributes:
        config: The rules; None if they cannot be read.
        problem: Why they cannot be read; else empty.
        cron: The schedule of sweeps, in UTC.
        is_sweeping: Whether a sweep runs now.
        reports: Of the last sweeps, the latest first.
        latest: The models of the last close looks, the latest first.
    """

    config: WatchConfig | None
    problem: str = ""
    cron: str
    is_paused: bool = False
    is_sweeping: bool = False
    reports: tuple[SweepReport, ...] = ()
    latest: tuple[SeenModel, ...] = ()


class WatchAct(StrEnum):
    """A command of an operator to the watcher."""

    SWEEP = "sweep"
    PAUSE = "pause"
    RESUME = "resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchRequests:
    """The requests of a Space to the watcher, in its answer to a post of the runner.

    Attributes:
        look_at: Repos that changed, as a webhook said.
        act: The operator's command, if there is one.
    """

    look_at: tuple[str, ...] = ()
    act: WatchAct | None = None


def requests_to_json(requests: WatchRequests) -> dict[str, Any]:
    """`requests` as JSON types."""
    return asdict(requests)


def requests_from_json(raw: Mapping[str, Any]) -> WatchRequests:
    """The requests that `requests_to_json` wrote.

    Raises:
        KeyError, TypeError, ValueError: `raw` is malformed.
    """
    names = raw["look_at"][:_MAX_LOOKS]
    act = raw["act"]
    return WatchRequests(
        look_at=tuple(str(name)[:_MAX_NAME] for name in names),
        act=None if act is None else WatchAct(act),
    )


def status_to_json(status: WatchStatus) -> dict[str, Any]:
    """`status` as JSON types, without the names on the opt-out list."""
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
        KeyError, TypeError, ValueError, AttributeError: `raw` is malformed.
    """
    config = raw["config"]
    return WatchStatus(
        config=None if config is None else _config(config),
        problem=str(raw["problem"]),
        cron=str(raw["cron"]),
        is_paused=bool(raw["is_paused"]),
        is_sweeping=bool(raw["is_sweeping"]),
        reports=tuple(map(report_from_json, raw["reports"])),
        latest=tuple(map(_seen_model, raw["latest"])),
    )


def _config(raw: Mapping[str, Any]) -> WatchConfig:
    rules = tuple(Rule(**_fields(each)) for each in raw["rules"])
    return WatchConfig(**{**_fields(raw), "rules": rules})


def _fields(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(each) if isinstance(each, list) else each for name, each in raw.items()}


def _seen_model(raw: Mapping[str, Any]) -> SeenModel:
    return SeenModel(**{**raw, "skip": Skip(raw["skip"]) if raw["skip"] else None})
