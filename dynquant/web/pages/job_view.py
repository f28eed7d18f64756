"""The state of a job as HTML."""

from __future__ import annotations

from collections.abc import Sequence

from dynquant.convert import STEPS as ORDER
from dynquant.jobs.job import Job, JobState
from dynquant.jobs.ports import JobEvent
from dynquant.jobs.whole_progress import STEP_BEGINS, WholeProgress
from dynquant.web import labels, markup

__all__ = ["job_view"]

_NUM_LOG_LINES = 30


def job_view(
    job: Job,
    log: Sequence[JobEvent],
    *,
    page_url: str,
    progress: WholeProgress | None = None,
    has_runner: bool = True,
) -> str:
    """A job and its log.

    Args:
        job: The job.
        log: Its events, oldest first.
        page_url: The page of the model on the Hub.
        progress: Of all its steps, if it runs.
        has_runner: Whether a runner is alive.
    """
    request = job.request
    model = markup.link(request.model, page_url)
    asked = (
        f"{labels.bpw_list(request.targets_bpw)} bits per weight, asked for by "
        f"{markup.text(request.requester)} on {markup.moment(job.submitted_at)}"
    )
    if job.attempt > 1:
        asked += f", attempt {job.attempt}"
    lines = [
        f'<p class="dq-over">Job <code>{markup.text(job.id)}</code> {markup.state_tag(job)}</p>',
        f"<h1>{model}</h1>",
        f'<p class="dq-lead">{asked}</p>',
        _state(job, has_runner=has_runner),
        _whole(progress),
        _steps(job),
        _log(log, is_folded=job.state is JobState.PUBLISHED),
    ]
    return "".join(lines)


def _state(job: Job, *, has_runner: bool) -> str:
    """A notice on the state of the job."""
    if job.state is JobState.WAITING:
        return markup.notice("Waiting", _wait(job, has_runner=has_runner))
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


def _wait(job: Job, *, has_runner: bool) -> str:
    """The place of a job in the queue, and the reason why it waits."""
    place = f"It is number {job.position} in the queue." if job.position else "It waits."
    turn = f" Its turn comes in about {labels.duration(job.eta_secs)}." if job.eta_secs else ""
    reason = job.sentence
    if not has_runner and "runner" not in reason:
        reason = f"{reason} No runner has been seen; it waits until a runner is started."
    elif not reason:
        ahead = (job.position or 1) - 1
        reason = (
            f"It waits for the {ahead} before it." if ahead else "The next free runner takes it."
        )
    return f"{place}{turn} {reason}"


def _whole(progress: WholeProgress | None) -> str:
    """A bar over all steps, with the time left."""
    if progress is None:
        return ""
    said = f"{100 * progress.fraction:.0f} % of the job"
    if progress.eta_secs is not None:
        said += f" · about {labels.duration(progress.eta_secs)} left"
    bar = markup.bar(progress.fraction, "The whole job")
    return f'<div class="dq-whole">{bar}<strong>{said}</strong></div>'


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
        f"<li>{markup.moment(each.at, is_clock=True)} <span>{markup.text(_said(each))}</span></li>"
        for each in log[-_NUM_LOG_LINES:]
    )
    if is_folded:
        return f'<details class="dq-log"><summary>Log</summary><ol>{lines}</ol></details>'
    return f'<section class="dq-log"><h2>Log</h2><ol>{lines}</ol></section>'


def _said(event: JobEvent) -> str:
    """A line of the log, with the labels of steps."""
    found = STEP_BEGINS.fullmatch(event.sentence)
    label = labels.STEPS.get(found[1]) if found else None
    return f"Now: {label[0].lower()}{label[1:]}." if label else event.sentence
