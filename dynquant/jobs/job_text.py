"""Jobs and requests as JSON, for the database and for files from outside."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime
from typing import Any

from dynquant.errors import RequestError
from dynquant.jobs.job import (
    STEPS,
    Attempt,
    Job,
    JobOption,
    JobRequest,
    JobState,
    Outcome,
    Priority,
    PublishedRepo,
    StepProgress,
)
from dynquant.quant.recipe import MAX_BPW, MAX_TARGETS

__all__ = [
    "job_from_text",
    "job_to_text",
    "outcome_from_text",
    "outcome_to_text",
    "request_from_json",
    "request_to_json",
    "results_from_text",
    "results_to_text",
]

_MAX_TEXT = 200
"""Longest name in a request; the Hub's ids have at most 96 characters per part."""
_MAX_URL = 2_000
_MAX_OPTIONS = 64
_MAX_DEPTH = 3
_MAX_NUMBER = 1e15

_PLAIN_FIELDS: Mapping[str, type] = {
    "id": str,
    "recipe_version": int,
    "attempt": int,
    "runner": str,
    "reason_code": str,
    "sentence": str,
    "deaths": int,
}
_REQUEST_FIELDS = frozenset(each.name for each in fields(JobRequest))
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def request_to_json(request: JobRequest) -> dict[str, Any]:
    """`request` as JSON types."""
    raw = {
        **asdict(request),
        "targets_bpw": list(request.targets_bpw),
        "priority": request.priority.name.lower(),
        "options": {name: _listed(value) for name, value in request.options.items()},
    }
    for name in ("public", "source_is_private", "requester_id"):
        if not raw[name]:  # runners of before do not know it, and refuse what they do not know
            del raw[name]
    return raw


def request_from_json(raw: object) -> JobRequest:
    """The request that `raw` is; it may come from anybody.

    Raises:
        RequestError: Not a request; says which part.
    """
    if not isinstance(raw, dict):
        raise RequestError("A request is a JSON object with a model and targets_bpw.")
    unknown = sorted(str(name) for name in raw if name not in _REQUEST_FIELDS)
    if unknown:
        raise RequestError(f"A request has no field '{unknown[0][:_MAX_TEXT]}'. Leave it out.")
    if _flag(raw, "private") and _flag(raw, "public"):
        raise RequestError("A request is private or public, not both. Leave one of them out.")
    return JobRequest(
        model=_text(raw, "model"),
        revision=_text(raw, "revision") if raw.get("revision") is not None else None,
        targets_bpw=_targets(raw.get("targets_bpw")),
        destination=_text(raw, "destination", may_be_empty=True),
        requester=_text(raw, "requester"),
        requester_id=_text(raw, "requester_id", may_be_empty=True),
        priority=_priority(raw.get("priority", "person")),
        private=_flag(raw, "private"),
        public=_flag(raw, "public"),
        source_is_private=_flag(raw, "source_is_private"),
        options=_options(raw.get("options", {})),
        notify_url=_url(raw),
    )


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


def _listed(value: JobOption) -> Any:
    return [_listed(each) for each in value] if isinstance(value, tuple) else value


def _text(raw: Mapping[str, Any], name: str, *, may_be_empty: bool = False) -> str:
    value = raw.get(name, "")
    if not isinstance(value, str) or not (value or may_be_empty):
        raise RequestError(f"A request's {name} is a text that is not empty.")
    if len(value) > _MAX_TEXT or not value.isprintable():
        raise RequestError(
            f"A request's {name} has at most {_MAX_TEXT} characters, all of them printable."
        )
    return value


def _targets(raw: object) -> tuple[float, ...]:
    numbers = raw if isinstance(raw, list) else []
    are_bpw = all(
        isinstance(each, int | float) and not isinstance(each, bool) and 0 < each <= MAX_BPW
        for each in numbers
    )
    if not (are_bpw and 1 <= len(numbers) <= MAX_TARGETS):
        raise RequestError(
            f"Ask for 1 to {MAX_TARGETS} sizes in bits per weight (targets_bpw), each above 0 and "
            f"at most {MAX_BPW:g}."
        )
    return tuple(map(float, numbers))


def _priority(raw: object) -> Priority:
    for priority in Priority:
        if raw == priority.name.lower():
            return priority
    names = " or ".join(f"'{each.name.lower()}'" for each in Priority)
    raise RequestError(f"A request's priority is {names}.")


def _flag(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name, False)
    if not isinstance(value, bool):
        raise RequestError(f"A request's {name} is true or false.")
    return value


def _options(raw: object) -> dict[str, JobOption]:
    if not isinstance(raw, dict) or len(raw) > _MAX_OPTIONS:
        raise RequestError(f"A request's options are an object of at most {_MAX_OPTIONS} fields.")
    return {_text({"option": name}, "option"): _option(value) for name, value in raw.items()}


def _option(raw: object, depth: int = _MAX_DEPTH) -> JobOption:
    if isinstance(raw, list) and len(raw) <= _MAX_OPTIONS and depth > 0:
        return tuple(_option(each, depth - 1) for each in raw)
    is_number = isinstance(raw, int | float) and abs(raw) <= _MAX_NUMBER  # false for NaN
    if raw is None or is_number or (isinstance(raw, str) and len(raw) <= _MAX_URL):
        return raw  # type: ignore[return-value]  # mypy does not follow `is_number`
    raise RequestError("A request's options are texts, numbers, true, false, null or lists.")


def _url(raw: Mapping[str, Any]) -> str | None:
    value = raw.get("notify_url")
    if value is None:
        return None
    if (
        not isinstance(value, str)
        or len(value) > _MAX_URL
        or not value.isprintable()
        or not value.startswith(("https://", "http://"))
    ):
        raise RequestError(
            "The address to notify (notify_url) has to begin with https://. Give such an address, "
            "or none."
        )
    return value
