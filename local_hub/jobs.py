"""Routes of Jobs: started, looked at, listed, followed by their logs, labelled and cancelled."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from local_hub.access import may_write, require_write_token
from local_hub.answers import Answer, json_answer, refusal
from local_hub.calls import Call, Here
from local_hub.machines import CANCELED, Job

LOOK_SECS = 0.02
RIGHT = "job.write"

router = APIRouter()


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid")
    command: list[str] = Field(min_length=1)
    arguments: list[str] = []
    environment: dict[str, str] = {}
    secrets: dict[str, str] = {}
    flavor: str
    timeoutSeconds: int | None = Field(None, ge=1)  # noqa: N815
    attempts: int | None = Field(None, ge=1)
    labels: dict[str, str] = {}
    dockerImage: str | None = None  # noqa: N815
    spaceId: str | None = None  # noqa: N815


class _Labels(BaseModel):
    labels: dict[str, str]


@router.get("/api/jobs/hardware")
async def get_hardware(call: Here) -> Answer:
    return json_answer(call.hub.machines.hardware)


@router.post("/api/jobs/{namespace:part}")
async def post_job(call: Here, namespace: str, body: _Spec) -> Answer:
    machines = call.hub.machines
    user = _require_right(call, namespace)
    if machines.credits.get(namespace, 1.0) <= 0:
        raise refusal(402, "Pre-paid credit balance is insufficient: add credits to use Jobs.")
    if body.flavor not in {each["name"] for each in machines.hardware}:
        raise refusal(400, f"flavor: Invalid option: '{body.flavor}'")
    job = machines.start(
        body.model_dump(exclude_none=True),
        namespace=namespace,
        initiator=user,
        endpoint=call.hub.url,
    )
    return json_answer(_record(call, job))


@router.get("/api/jobs/{namespace:part}")
async def get_jobs(call: Here, namespace: str) -> Answer:
    _require_member(call, namespace)
    stages = call.request.query.get("stage", [])
    labels = [each.split("=", 1) for each in call.request.query.get("label", [])]
    found = [
        job
        for job in reversed(call.hub.machines.jobs.values())
        if job.namespace == namespace
        and (not stages or job.stage in stages)
        and all(job.spec["labels"].get(name) == value for name, value in labels)
    ]
    return json_answer([_record(call, job) for job in found])


@router.get("/api/jobs/{namespace:part}/{job_id:part}")
async def get_job(call: Here, namespace: str, job_id: str) -> Answer:
    return json_answer(_record(call, _job(call, namespace, job_id)))


@router.get("/api/jobs/{namespace:part}/{job_id:part}/logs")
async def get_logs(call: Here, namespace: str, job_id: str) -> Response:
    job = _job(call, namespace, job_id)
    tail = call.request.query.get("tail")
    begin = max(0, len(job.lines) - int(tail[0])) if tail else 0
    machines = call.hub.machines
    length, machines.breaks_logs_after = machines.breaks_logs_after, None
    # The client that only asks for what there is stops at the first line after this time.
    now = {"Date": datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")}
    return StreamingResponse(
        _events(job, begin, length), media_type="text/event-stream", headers=now
    )


@router.post("/api/jobs/{namespace:part}/{job_id:part}/cancel")
async def post_cancel(call: Here, namespace: str, job_id: str) -> Answer:
    _require_right(call, namespace)
    job = _job(call, namespace, job_id)
    call.hub.machines.end(job, CANCELED)
    return json_answer(_record(call, job))


@router.put("/api/jobs/{namespace:part}/{job_id:part}/labels")
async def put_labels(call: Here, namespace: str, job_id: str, body: _Labels) -> Answer:
    _require_right(call, namespace)
    job = _job(call, namespace, job_id)
    job.spec["labels"] = body.labels
    return json_answer(_record(call, job))


async def _events(job: Job, begin: int, length: int | None) -> AsyncIterator[str]:
    """The lines of a Job as server-sent events, until it is over, or after so many."""
    sent = begin
    while True:
        is_over = job.is_over  # before the lines: what it wrote last is still sent
        for time, line in job.lines[sent:]:
            yield f"data: {json.dumps({'timestamp': _text(time), 'data': line})}\n\n"
            sent += 1
            if length is not None and sent - begin >= length:
                return
        if is_over:
            return
        await asyncio.sleep(LOOK_SECS)


def _require_member(call: Call, namespace: str) -> str:
    user = call.user
    if user is None:
        raise refusal(401, "Invalid username or password.")
    if user != namespace and namespace not in call.hub.orgs.get(user, {}):
        raise refusal(403, f"You don't have access to the jobs of {namespace}.")
    return user


def _require_right(call: Call, namespace: str) -> str:
    """The user, if they and their token may start and cancel Jobs of a namespace."""
    hub, user = call.hub, require_write_token(call.hub, call.request)
    token = call.request.token
    assert token is not None
    if hub.token_roles.get(token) == "fineGrained":
        scopes = hub.scopes.get(token, {"": hub.permissions})
        if RIGHT not in {*scopes.get("", ()), *scopes.get(namespace, ())}:
            raise refusal(403, f"Your token lacks the permission {RIGHT}.")
    if not may_write(hub, namespace, user):
        raise refusal(403, f"You don't have the rights to run jobs in {namespace}.")
    return user


def _job(call: Call, namespace: str, job_id: str) -> Job:
    _require_member(call, namespace)
    job = call.hub.machines.jobs.get(job_id)
    if job is None or job.namespace != namespace:
        raise refusal(404, "Job not found")
    return job


def _record(call: Call, job: Job) -> dict[str, Any]:
    """A Job in the Hub's form: of its secrets the names alone."""
    hub, now = call.hub, datetime.now(UTC)
    started, end = job.started_at, job.finished_at or now
    is_user = job.namespace in hub.tokens.values()
    return {
        **{name: job.spec.get(name) for name in ("dockerImage", "spaceId", "command", "arguments")},
        **{name: job.spec[name] for name in ("environment", "flavor", "labels")},
        "id": job.id,
        "secrets": sorted(job.secrets),
        "createdAt": _text(job.created_at),
        "startedAt": started and _text(started),
        "finishedAt": job.finished_at and _text(job.finished_at),
        "retry": (job.spec.get("attempts") or 1) - 1,
        "status": {"stage": job.stage, "message": job.message},
        "durations": {
            "schedulingSecs": started and int((started - job.created_at).total_seconds()),
            "runningSecs": started and int((end - started).total_seconds()),
            "totalSecs": int((end - job.created_at).total_seconds()),
        },
        "owner": {
            "id": hub.account_id(job.namespace),
            "name": job.namespace,
            "type": "user" if is_user else "org",
        },
        "initiator": {
            "type": "user", "id": hub.account_id(job.initiator), "name": job.initiator,
        },
    }  # fmt: skip


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
