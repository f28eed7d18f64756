"""The board as HTML: waiting, running and finished jobs, and the runners."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from dynquant.jobs.job import Job, JobState
from dynquant.jobs.ports import RunnerStatus
from dynquant.jobs.whole_progress import WholeProgress
from dynquant.report.numbers import size
from dynquant.web import labels, markup
from dynquant.web.finished_models import FinishedModel
from dynquant.web.service import Board

__all__ = ["FILTERS", "board_view"]

FILTERS: Mapping[str, frozenset[JobState]] = {
    "All": frozenset(JobState),
    "Waiting": frozenset({JobState.WAITING}),
    "Running": frozenset({JobState.RUNNING}),
    "Published": frozenset({JobState.PUBLISHED}),
    "Refused or failed": frozenset({JobState.REFUSED, JobState.FAILED}),
}

_SHOWN = 50
_MINUTE_SECS = 60


def board_view(
    board: Board,
    known: Sequence[FinishedModel],
    *,
    state: str,
    wanted: str,
    progress: Callable[[Job], WholeProgress | None] = lambda _job: None,
) -> str:
    """The board.

    Args:
        board: All jobs and runners.
        known: The finished models that are known now.
        state: A key of `FILTERS`; any other text shows all.
        wanted: Part of the name of a model or a requester.
        progress: Progress of a running job over all of its steps.
    """
    shown = [job for job in board.jobs if _is_wanted(job, state, wanted)]
    return _totals(board, known) + _jobs(shown, board, progress) + _runners(board.runners)


def _is_wanted(job: Job, state: str, wanted: str) -> bool:
    part = wanted.strip().lower()
    names = f"{job.request.model} {job.request.requester}".lower()
    return job.state in FILTERS.get(state, FILTERS["All"]) and part in names


def _totals(board: Board, known: Sequence[FinishedModel]) -> str:
    num_published = sum(job.state is JobState.PUBLISHED for job in board.jobs)
    queue = board.queue
    num_bytes = sum(each.variant.num_bytes for each in known)
    finished = f"{len(known)}<small>{size(num_bytes)}</small>" if known else "–"
    tiles = [
        ("Waiting", str(queue.num_waiting)),
        ("Running", str(queue.num_running)),
        ("Published", str(num_published)),
        ("Median time", labels.duration(queue.job_secs) if queue.job_secs is not None else "–"),
        ("Models in the gallery", finished),
    ]
    boxes = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in tiles)
    return f'<dl class="dq-tiles dq-totals">{boxes}</dl>'


def _jobs(
    shown: Sequence[Job], board: Board, progress: Callable[[Job], WholeProgress | None]
) -> str:
    if not board.jobs:
        return markup.empty("No jobs yet", "Ask for the first model on the page Convert.")
    if not shown:
        return markup.empty("Nothing matches", "Choose another filter or name.")
    items = "".join(_job(each, progress(each)) for each in shown[:_SHOWN])
    more = len(shown) - _SHOWN
    rest = f'<p class="dq-wait">{more} older jobs are not shown.</p>' if more > 0 else ""
    return f'<ul class="dq-jobs">{items}</ul>{rest}'


def _job(job: Job, progress: WholeProgress | None) -> str:
    targets = labels.bpw_list(job.request.targets_bpw)
    about = f"{targets} bits per weight · {markup.text(job.request.requester)} · "
    return (
        f"<li><div><strong>{markup.job_link(job.id, job.request.model)}</strong>"
        f"<small>{about}{markup.moment(job.submitted_at)}</small></div>"
        f'<div class="dq-how">{markup.state_tag(job)}{_how(job, progress)}</div></li>'
    )


def _how(job: Job, progress: WholeProgress | None) -> str:
    """Its progress, place in the queue, or reason of failure."""
    if job.state is JobState.RUNNING and job.progress is not None and progress is not None:
        said = f"{100 * progress.fraction:.0f} % · {labels.STEPS[job.progress.step]}"
        return markup.bar(progress.fraction, "The whole job") + f"<small>{said}</small>"
    if job.state is JobState.WAITING:
        place = f"Number {job.position} in the queue. " if job.position else ""
        return f"<small>{markup.text(place + job.sentence)}</small>"
    if job.state in {JobState.REFUSED, JobState.FAILED}:
        code = f"<code>{markup.text(job.reason_code)}</code> " if job.reason_code else ""
        return f"<small>{code}{markup.text(job.sentence)}</small>"
    return ""


def _runners(runners: Sequence[RunnerStatus]) -> str:
    title = "<h2>Runners</h2>"
    if not runners:
        sentence = "Jobs wait until a runner is started: 'dynquant runner' on a Mac."
        return title + markup.empty("No runner has been seen yet", sentence)
    return title + markup.table(
        ("Runner", "State", "Chip", "Memory", "Jobs", "Last seen"),
        [_runner(each) for each in runners],
        align="lllrrr",
        name="Runners",
    )


def _runner(runner: RunnerStatus) -> tuple[str, ...]:
    kind, word = ("busy", "Working") if runner.num_running else ("good", "Ready")
    if not runner.is_alive:
        kind, word = "plain", "Away"
    state = f'<span class="dq-tag dq-{kind}">{word}</span>'
    minutes = _minutes(runner)
    heard = "just now" if minutes == 0 else f"{labels.duration(minutes * _MINUTE_SECS)} ago"
    return (
        f"{markup.text(runner.id)}<small>dynquant {markup.text(runner.version)}</small>",
        state,
        markup.text(runner.chip or "unknown"),
        markup.text(size(runner.memory_bytes)),
        f"{runner.num_running} of {runner.num_slots}",
        heard,
    )


def _minutes(runner: RunnerStatus) -> int:
    """Whole minutes since the runner was seen: seconds would change the page at every look."""
    return int(runner.silent_secs // _MINUTE_SECS)
