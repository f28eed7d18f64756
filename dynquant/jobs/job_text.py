"""Jobs and their outcomes as JSON, for the database and for files from outside."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime

from pydantic import TypeAdapter

from dynquant.convert import STEPS
from dynquant.errors import RequestError
from dynquant.jobs.job import Job, Outcome, PublishedRepo
from dynquant.jobs.request import request_from_json, request_to_json

__all__ = [
    "job_from_text",
    "job_to_text",
    "outcome_from_text",
    "outcome_to_text",
    "results_from_text",
    "results_to_text",
]

# They read what `json` parsed: pydantic's own parser refuses lone surrogates in sentences.
_JOB = TypeAdapter(Job)
_OUTCOME = TypeAdapter(Outcome)
_RESULTS = TypeAdapter(tuple[PublishedRepo, ...])


def job_to_text(job: Job) -> str:
    """`job` as the database keeps it, without its place in the line, which other jobs change."""
    fields = asdict(job) | {"request": request_to_json(job.request)}
    del fields["position"], fields["eta_secs"]
    return _dumped(fields)


def job_from_text(text: str) -> Job:
    """The job that `job_to_text` wrote.

    Raises:
        RequestError: The text is not a job of this version of dynquant.
    """
    try:
        raw = json.loads(text)
        job = _JOB.validate_python(raw | {"request": request_from_json(raw["request"])})
    except RequestError as error:
        raise RequestError(f"This entry of the queue is not a job: {error}") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _not_a_job() from error
    if job.progress is not None and job.progress.step not in STEPS:
        raise _not_a_job()
    return job


def outcome_to_text(outcome: Outcome) -> str:
    """`outcome` as the engine keeps it."""
    return _dumped(asdict(outcome))


def outcome_from_text(text: str) -> Outcome:
    """The outcome that `outcome_to_text` wrote."""
    return _OUTCOME.validate_python(json.loads(text))


def results_to_text(results: tuple[PublishedRepo, ...]) -> str:
    """The text that the step `publish` returns."""
    return _dumped([asdict(each) for each in results])


def results_from_text(text: str) -> tuple[PublishedRepo, ...]:
    """The published repos, from the text that the step `publish` returned."""
    return _RESULTS.validate_python(json.loads(text))


def _not_a_job() -> RequestError:
    return RequestError(
        "This entry of the queue is not a job of this version of dynquant. Ask for the model again."
    )


def _dumped(value: object) -> str:
    return json.dumps(value, default=_plain, sort_keys=True, separators=(",", ":"))


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(type(value))
