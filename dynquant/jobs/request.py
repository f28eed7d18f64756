"""A request of a person or the watcher: one record from every entrance to the job.

It is strict: a request with an unknown or misspelt field is refused where it enters. And it is
canonical: two requests for the same results are the same job, however they were written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from enum import IntEnum
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass

from dynquant.errors import RequestError
from dynquant.model.naming import TARGET_DECIMALS
from dynquant.quant.options import RecipeOptions, complaint
from dynquant.quant.recipe import MAX_BPW, MAX_TARGETS, Recipe

__all__ = [
    "JobRequest",
    "Priority",
    "check_notify_url",
    "job_id",
    "request_from_json",
    "request_to_json",
]

MAX_NAME_CHARS = 200
"""Longest name in a request; the Hub's ids have at most 96 characters per part."""

_MAX_URL_CHARS = 2_000

_ID_DIGITS = 20
"""80 bits: the chance that two of a billion jobs share an id is below 1e-6."""

_FLOAT_NOISE = 1e-6


class Priority(IntEnum):
    """Jobs with a lower number go first."""

    PERSON = 0
    WATCHER = 1


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("all its characters must be printable")
    return text


def _as_named(target_bpw: float) -> float:
    """`target_bpw`, rounded down to the decimals that a repo's name has."""
    scaled = target_bpw * 10**TARGET_DECIMALS
    return math.floor(scaled + _FLOAT_NOISE) / 10**TARGET_DECIMALS if scaled >= 1 else target_bpw


def _targets(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _priority(value: object) -> object:
    return {each.name.lower(): each for each in Priority}.get(value, value)  # type: ignore[call-overload]


def _options(value: object) -> object:
    return RecipeOptions.model_validate(value) if isinstance(value, Mapping) else value


Name = Annotated[
    str, StringConstraints(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(_printable)
]
NameOrEmpty = Annotated[
    str, StringConstraints(max_length=MAX_NAME_CHARS), AfterValidator(_printable)
]
Bpw = Annotated[float, Field(gt=0, le=MAX_BPW, allow_inf_nan=False), AfterValidator(_as_named)]
Url = Annotated[
    str,
    StringConstraints(pattern=r"^https?://", max_length=_MAX_URL_CHARS),
    AfterValidator(_printable),
]


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid"))
class JobRequest:
    """A request to quantize a model.

    Attributes:
        model: Repo id.
        revision: Branch, tag or commit; a job's own request has the commit.
        targets_bpw: Stored bits per weight, one repo each; rounded down to the decimals that the
            repo's name has, so that no two jobs make repos of one name.
        destination: Namespace or name template of the repos to publish.
        requester: Account or user that asked; jobs take turns between requesters.
        requester_id: The Hub's own id of that account, which an account that takes the name later
            does not get; empty for users of this machine.
        private: Whether new repos are private. Those of a private model always are, unless
            `public` is set.
        public: Whether new repos are public though the model is private.
        source_is_private: Whether the model was private on the Hub when the request was queued. The
            board's callers look that up; a value from the requester does not count.
        options: How to quantize.
        notify_url: Web address that is notified when the job ends.

    Raises:
        RequestError: A field is unknown, of the wrong type or out of range.
    """

    model: Name
    targets_bpw: Annotated[
        tuple[Bpw, ...], Field(min_length=1, max_length=MAX_TARGETS), BeforeValidator(_targets)
    ]
    requester: Name
    revision: Name | None = None
    destination: NameOrEmpty = ""
    requester_id: NameOrEmpty = ""
    priority: Annotated[Priority, BeforeValidator(_priority)] = Priority.PERSON
    private: bool = False
    public: bool = False
    source_is_private: bool = False
    options: Annotated[RecipeOptions, BeforeValidator(_options)] = RecipeOptions()
    notify_url: Url | None = None

    _HINTS: ClassVar[Mapping[str, str]] = {
        "targets_bpw": f"Ask for 1 to {MAX_TARGETS} sizes in bits per weight (targets_bpw), each "
        f"above 0 and at most {MAX_BPW:g}.",
        "priority": "A request's priority is 'person' or 'watcher'.",
        "notify_url": "The address to notify (notify_url) has to begin with https://. Correct it, "
        "or leave it out.",
    }

    @model_validator(mode="wrap")
    @classmethod
    def _in_sentences(cls, value: Any, validate: Any) -> Self:
        try:
            request: Self = validate(value)
        except ValidationError as error:
            loc = error.errors(include_url=False)[0]["loc"]
            fields = [each.name for each in dataclasses.fields(cls)]
            hint = cls._HINTS.get(str(loc[0])) if loc else None
            raise RequestError(hint or complaint(error, fields, "field")) from error
        if request.private and request.public:
            raise RequestError("A request is private or public, not both. Leave one of them out.")
        return request

    @property
    def recipe(self) -> Recipe:
        """How to quantize."""
        return self.options.recipe(self.targets_bpw)


def request_to_json(request: JobRequest) -> dict[str, Any]:
    """`request` as JSON types."""
    raw = {field.name: getattr(request, field.name) for field in dataclasses.fields(request)}
    raw |= {
        "targets_bpw": list(request.targets_bpw),
        "priority": request.priority.name.lower(),
        "options": request.options.to_json(),
    }
    for name in ("public", "source_is_private", "requester_id"):
        if not raw[name]:  # older runners refuse fields that they do not know
            del raw[name]
    return raw


def request_from_json(raw: object) -> JobRequest:
    """The request in `raw`, which is not trusted.

    Raises:
        RequestError: It is not a request; names the wrong field.
    """
    if not isinstance(raw, dict):
        raise RequestError("A request is a JSON object with a model and targets_bpw.")
    names = {field.name for field in dataclasses.fields(JobRequest)}
    if unknown := sorted(str(name) for name in raw if name not in names):
        raise RequestError(f"A request has no field '{unknown[0][:MAX_NAME_CHARS]}'. Leave it out.")
    return JobRequest(**raw)


def check_notify_url(request: JobRequest) -> None:
    """Refuse an address without https; queued jobs with such an address stay readable.

    Raises:
        RequestError: It does not begin with https.
    """
    if request.notify_url is not None and not request.notify_url.startswith("https://"):
        raise RequestError(
            "The address to notify has to begin with https://. Correct it, or leave it out."
        )


def job_id(request: JobRequest, *, revision_sha: str, recipe_version: int) -> str:
    """Id of the job for `request`: requests for the same results have the same id.

    The requester, the priority and the address to notify do not count; the visibility of the
    results does.
    """
    identity: dict[str, object] = {
        "model": request.model,
        "revision_sha": revision_sha,
        "targets_bpw": sorted(set(request.targets_bpw)),
        "recipe_version": recipe_version,
        "options": request.options.to_json(),
        "destination": request.destination,
    }
    # Included only if they are set, so that the ids of older jobs stay the same.
    identity |= {name: True for name in ("private", "public") if getattr(request, name)}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]
