"""Jobs and requests as JSON, for the database and for files from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from dynquant.convert import STEPS
from dynquant.errors import RequestError
from dynquant.jobs.job import Attempt, Job, JobState, Outcome, PublishedRepo, StepProgress
from dynquant.jobs.request import request_from_json, request_to_json

__all__ = [
    "job_from_text",
    "job_to_text",
    "outcome_from_text",
    "outcome_to_text",
    "results_from_text",
    "results_to_text",
]

_PLAIN_FIELDS: Mapping[str, type] = {
    "id": str,
    "recipe_version": int,
    "attempt": int,
    "runner": str,
    "reason_code": str,
    "sentence": str,
    "deaths": int,
}
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def job_to_text(job: Job) -> str:
    """`job` as it is kept; its place in the line is not, since it changes with the others."""
    return _dumped(
        {
            **{
                name: value
                for name, value in asdict(job).items()
                if name not in {"position", "eta_secs"}
            },
            "request": request_to_json(job.request),
        }
    )


def job_from_text(text: str) -> Job:
    """The job that `job_to_text` wrote.

    Raises:
        RequestError: It is not one of this version of dynquant.
    """
    try:
        raw = json.loads(text)
        if any(type(raw[name]) is not kind for name, kind in _PLAIN_FIELDS.items()):
            raise TypeError
        return Job(
            **{
                **raw,
                "request": request_from_json(raw["request"]),
                "state": JobState(raw["state"]),
                "progress": _progress(raw["progress"]),
                "results": tuple(PublishedRepo(**each) for each in raw["results"]),
                "history": tuple(map(_attempt, raw["history"])),
                **{name: _time(raw[name]) for name in ("submitted_at", "started_at", "ended_at")},
            }
        )
    except RequestError as error:
        raise RequestError(f"This entry of the queue is not a job: {error}") from error
    except _MALFORMED as error:
        raise RequestError(
            "This entry of the queue is not a job of this version of dynquant. Ask for the "
            "model again."
        ) from error


def outcome_to_text(outcome: Outcome) -> str:
    """`outcome` as the engine keeps it."""
    return _dumped(asdict(outcome))


def outcome_from_text(text: str) -> Outcome:
    """The outcome that `outcome_to_text` wrote."""
    raw = json.loads(text)
    results = tuple(PublishedRepo(**each) for each in raw["results"])
    return Outcome(**{**raw, "state": JobState(raw["state"]), "results": results})


def results_to_text(results: tuple[PublishedRepo, ...]) -> str:
    """What the step `publish` returns."""
    return _dumped([asdict(each) for each in results])


def results_from_text(text: str) -> tuple[PublishedRepo, ...]:
    """What was published, from what the step `publish` returned."""
    return tuple(PublishedRepo(**each) for each in json.loads(text))


def _progress(raw: Mapping[str, Any] | None) -> StepProgress | None:
    if raw is None:
        return None
    if raw["step"] not in STEPS:
        raise ValueError(raw["step"])
    return StepProgress(**raw)


def _attempt(raw: Mapping[str, Any]) -> Attempt:
    return Attempt(
        **{
            **raw,
            "state": JobState(raw["state"]),
            "started_at": _time(raw["started_at"]),
            "ended_at": _time(raw["ended_at"]),
        }
    )


def _time(raw: str | None) -> datetime | None:
    return None if raw is None else datetime.fromisoformat(raw)


def _dumped(value: object) -> str:
    return json.dumps(value, default=_plain, sort_keys=True, separators=(",", ":"))


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value))
