"""Labels of states and steps, and durations as text."""

from __future__ import annotations

from collections.abc import Mapping

from dynquant.jobs.job import JobState

__all__ = ["STATES", "STEPS", "bpw_list", "duration"]

_MINUTE_SECS = 60
_HOUR_SECS = 3_600
_DAY_SECS = 86_400

STATES: Mapping[JobState, str] = {
    JobState.WAITING: "Waiting",
    JobState.RUNNING: "Running",
    JobState.PUBLISHED: "Published",
    JobState.REFUSED: "Refused",
    JobState.FAILED: "Failed",
    JobState.CANCELLED: "Cancelled",
}

STEPS: Mapping[str, str] = {
    "resolve": "Look at the model",
    "download": "Download it",
    "measure": "Measure every layer",
    "encode": "Quantize",
    "verify": "Run it in stock mlx-lm",
    "evaluate": "Compare with the original",
    "card": "Write the card",
    "publish": "Publish",
}


def duration(secs: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 days`."""
    if secs < 1:
        return "less than a second"
    if secs < _MINUTE_SECS:
        return f"{secs:.0f} s"
    if secs < _HOUR_SECS:
        return f"{secs / _MINUTE_SECS:.0f} min"
    if secs < 2 * _DAY_SECS:
        hours, rest = divmod(round(secs / _MINUTE_SECS), _MINUTE_SECS)
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{secs / _DAY_SECS:.0f} days"


def bpw_list(targets: tuple[float, ...]) -> str:
    """`4.5`, or `3.5, 4.5 and 6`."""
    names = [f"{target:g}" for target in targets]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
