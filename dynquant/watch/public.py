"""Jobs and the watcher's status without anything private, as a Space shows them to all visitors."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from dynquant.jobs.job import Job, JobState
from dynquant.watch.records import SeenModel, SweepReport
from dynquant.watch.skips import Skip
from dynquant.watch.status import WatchStatus

__all__ = ["num_running", "public_jobs", "public_status"]

_RULES_PROBLEM = "The log of the watcher's runner names the error in them."
_SWEEP_PROBLEM = "The sweep is incomplete. The log of the watcher's runner has the reason."


def public_jobs(jobs: Iterable[Job]) -> tuple[Job, ...]:
    """The jobs that are not private, with their positions among each other."""
    public = [job for job in jobs if not job.is_private]
    line = sorted((job.position, job.id) for job in public if job.position is not None)
    places = {job_id: place for place, (_, job_id) in enumerate(line, start=1)}
    return tuple(replace(job, position=places.get(job.id)) for job in public)


def num_running(jobs: Iterable[Job], runner_id: str) -> int:
    """The number of these jobs that a runner does now."""
    return sum(job.state is JobState.RUNNING and job.runner == runner_id for job in jobs)


def public_status(status: WatchStatus, jobs: Collection[Job]) -> WatchStatus:
    """The watcher without its private rules, and without private models.

    Args:
        status: The whole status.
        jobs: Those that may be shown. Of the queued models only those of these jobs are named.
    """
    config = status.config
    if config is not None:
        rules = tuple(rule for rule in config.rules if not rule.private)
        config = replace(config, rules=rules, opt_out=())
    job_ids = {job.id for job in jobs}
    models = {job.request.model for job in jobs}
    return replace(
        status,
        config=config,
        problem=status.problem and _RULES_PROBLEM,  # it may quote a rule
        reports=tuple(_public_report(report, models) for report in status.reports),
        latest=tuple(known for known in status.latest if _is_public(known, job_ids)),
    )


def _is_public(known: SeenModel, job_ids: Collection[str]) -> bool:
    return known.skip is not Skip.PRIVATE and (not known.job_id or known.job_id in job_ids)


def _public_report(report: SweepReport, models: Collection[str]) -> SweepReport:
    queued = tuple(name for name in report.queued if name in models)
    skipped = dict(report.skipped)
    num_hidden_skips = skipped.pop(Skip.PRIVATE, 0)
    num_hidden = len(report.queued) - len(queued)
    return replace(
        report,
        num_seen=max(0, report.num_seen - num_hidden_skips - num_hidden),
        num_matched=max(len(queued), report.num_matched - num_hidden),
        queued=queued,
        skipped=skipped,
        sentence=report.sentence and _SWEEP_PROBLEM,  # it may name a model
    )
