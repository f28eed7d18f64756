"""The state of a job as HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime

from dynquant.convert import STEPS as ORDER
from dynquant.jobs.job import Job, JobState
from dynquant.jobs.ports import JobEvent
from dynquant.web import labels, markup

__all__ = ["job_view"]

_NUM_LOG_LINES = 30
_STEP = re.compile(r"Step (\w+) begins\.")
"""The line that runners write into the log."""


def job_view(job: Job, log: Sequence[JobEvent], *, page_url: str) -> str:
    """A job and its log; `page_url` is the page of the model on the Hub."""
    request = job.request
    model = markup.link(request.model, page_url)
    asked = (
        f"{labels.bpw_list(request.targets_bpw)} bits per weight, asked for by "
        f"{request.requester} {_when(job.submitted_at)}"
    )
    if job.attempt > 1:
        asked += f", attempt {job.attempt}"
    lines = [
        f'<p class="dq-over">Job <code>{markup.text(job.id)}</code> {markup.state_tag(job)}</p>',
        f"<h1>{model}</h1>",
        f'<p class="dq-lead">{markup.text(asked)}</p>',
        _state(job),
        _steps(job),
        _log(log, is_folded=job.state is JobState.PUBLISHED),
    ]
    return "".join(lines)


def _state(job: Job) -> str:
    """A notice on the state of the job."""
    if job.state is JobState.WAITING:
        place = f"It is number {job.position} in the queue." if job.position else "It waits."
        turn = f" Its turn comes in about {labels.duration(job.eta_secs)}." if job.eta_secs else ""
        return markup.notice("Waiting", f"{place}{turn} {job.sentence}".strip())
    if job.state in {JobState.REFUSED, JobState.FAILED}:
        title = labels.STATES[job.state]
        code = f"<small>Code: {markup.text(job.reason_code)}</small>" if job.reason_code else ""
        return (
            f'<div class="dq-notice dq-bad" role="status"><strong>{title}</strong>'
            f"<p>{markup.text(job.sentence)}</p>{code}</div>"
        )
    if job.state is JobState.CANCELLED:
        return markup.notice("Cancelled", "The steps done so far are kept for a retry.")
    if job.state is JobState.PUBLISHED:
        return markup.notice("Published", _took(job), kind="good")
    return ""


def _took(job: Job) -> str:
    if not (job.started_at and job.ended_at):
        return "It is on the Hub."
    secs = (job.ended_at - job.started_at).total_seconds()
    return f"It took {labels.duration(secs)} on {job.runner}."


def _steps(job: Job) -> str:
    """The steps in order, with a bar at the running step."""
    if job.state is JobState.PUBLISHED or not (job.progress or job.state is JobState.RUNNING):
        return ""
    reached = ORDER.index(job.progress.step) if job.progress else 0
    items = []
    for place, name in enumerate(ORDER):
        label = markup.text(labels.STEPS[name])
        if place < reached:
            items.append(f'<li class="dq-done">{label}</li>')
        elif place == reached:
            stopped = "dq-stopped" if job.is_over else "dq-now"
            items.append(f'<li class="{stopped}" aria-current="step">{label}{_progress(job)}</li>')
        else:
            items.append(f"<li>{label}</li>")
    return f'<ol class="dq-steps">{"".join(items)}</ol>'


def _progress(job: Job) -> str:
    progress = job.progress
    if progress is None or job.is_over:
        return ""
    parts = [f"{100 * progress.fraction:.0f} %"]
    if progress.eta_secs is not None:
        parts.append(f"about {labels.duration(progress.eta_secs)} left")
    parts += [part for part in (progress.layer, progress.sentence, f"on {job.runner}") if part]
    return (
        markup.bar(progress.fraction, labels.STEPS[progress.step])
        + f"<small>{markup.text(' · '.join(parts))}</small>"
    )


def _log(log: Sequence[JobEvent], *, is_folded: bool) -> str:
    if not log:
        return ""
    lines = "".join(
        f"<li><time>{event.at:%H:%M:%S}</time> <span>{markup.text(_said(event))}</span></li>"
        for event in log[-_NUM_LOG_LINES:]
    )
    title, note = "Log", "<small>times are UTC</small>"
    if is_folded:
        head = f"<summary>{title}</summary><p>{note}</p>"
        return f'<details class="dq-log">{head}<ol>{lines}</ol></details>'
    return f'<section class="dq-log"><h2>{title} {note}</h2><ol>{lines}</ol></section>'


def _said(event: JobEvent) -> str:
    """A line of the log, with the labels of steps."""
    found = _STEP.fullmatch(event.sentence)
    label = labels.STEPS.get(found[1]) if found else None
    return f"Now: {label[0].lower()}{label[1:]}." if label else event.sentence


def _when(at: datetime) -> str:
    """A date: `12 min ago` would change the page at every look."""
    return f"on {at.astimezone(UTC):%-d %B at %H:%M} UTC"
