"""What a target would give, said before anything is queued."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from dynquant.errors import InfeasibleTargetError
from dynquant.jobs.job import Job, JobState
from dynquant.jobs.ports import RunnerStatus
from dynquant.report.facts import SizeVariant
from dynquant.report.forecast import fitting_bpw, memory_to_run_bytes
from dynquant.report.numbers import percent, significant
from dynquant.report.quality_summary import fitting_macs
from dynquant.web.model_lookup import ModelPreview

__all__ = [
    "LARGEST_BPW",
    "QueueSummary",
    "TargetForecast",
    "largest_that_fits",
    "line_of",
    "outlook",
]

LARGEST_BPW = 8.5
"""Eight bits with a scale and a bias for every 64: what more takes, nobody can tell apart."""

_NEAR_BPW = 0.3
"""A figure that was measured this close to a target says what to expect of it."""

# What published figures of many models have in common, and a small model may miss.
_RULES_OF_THUMB = (
    (6.0, "hardly distinguishable from the original"),
    (4.5, "close to the original for most uses"),
    (3.5, "noticeably different, a choice for when memory is short"),
    (0.0, "clearly worse, a choice only where nothing larger fits"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetForecast:
    """What a target gives.

    Attributes:
        memory_bytes: To run at `context_tokens`; None if nobody can say.
        fits: The smallest Mac that runs it, in words; empty if nobody can say.
        quality: What to expect, in words.
        is_measured: Whether `quality` was measured on this model, and is no rule of thumb.
    """

    target_bpw: float
    size_bytes: int
    context_tokens: int
    memory_bytes: int | None
    fits: str
    quality: str
    is_measured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSummary:
    """What stands before a new job.

    Attributes:
        num_waiting: Jobs that wait.
        num_running: Jobs that run.
        num_runners: Runners that live.
        job_secs: Median of the jobs that were published lately; None before the first.
    """

    num_waiting: int
    num_running: int
    num_runners: int
    job_secs: float | None


def outlook(
    prospect: ModelPreview,
    target_bpw: float,
    *,
    context_tokens: int,
    measured: Sequence[SizeVariant],
) -> TargetForecast:
    """What `target_bpw` gives.

    Args:
        prospect: The model.
        target_bpw: Stored bits per weight.
        context_tokens: For the memory figure.
        measured: Figures of quants that dynquant made of this model before.

    Raises:
        InfeasibleTargetError: No choice of formats can meet it.
    """
    inventory = prospect.inventory
    # The headers tell sizes to about a hundredth; the runner knows exactly.
    if not inventory.min_bpw - 0.01 <= target_bpw <= inventory.max_bpw + 0.01:
        raise InfeasibleTargetError(
            f"{target_bpw:g} bits per weight cannot be met: with this model anything from about "
            f"{inventory.min_bpw:.2f} to {inventory.max_bpw:.2f} can. Choose a value in between.",
            min_bpw=inventory.min_bpw,
            max_bpw=inventory.max_bpw,
        )
    size_bytes = round(target_bpw * inventory.num_parameters / 8)
    memory_bytes = None
    if prospect.cache_bytes_per_token is not None:
        cache_bytes = context_tokens * prospect.cache_bytes_per_token
        memory_bytes = memory_to_run_bytes(size_bytes, cache_bytes)
    quality = _measured_near(target_bpw, measured)
    return TargetForecast(
        target_bpw=target_bpw,
        size_bytes=size_bytes,
        context_tokens=context_tokens,
        memory_bytes=memory_bytes,
        fits="" if memory_bytes is None else fitting_macs(memory_bytes),
        quality=quality or next(words for bpw, words in _RULES_OF_THUMB if target_bpw >= bpw),
        is_measured=bool(quality),
    )


def largest_that_fits(prospect: ModelPreview, *, memory_gib: int, context_tokens: int) -> float:
    """The most bits per weight that a Mac with so much memory runs, in steps of 0.1.

    Raises:
        InfeasibleTargetError: None fits.
    """
    cache_bytes = context_tokens * (prospect.cache_bytes_per_token or 0)
    found = fitting_bpw(prospect.inventory, memory_bytes=memory_gib << 30, cache_bytes=cache_bytes)
    least = prospect.inventory.min_bpw
    in_tenths = int(10 * min(found, LARGEST_BPW) + 1e-9) / 10
    return in_tenths if in_tenths >= least else round(min(found, LARGEST_BPW), 2)


def line_of(jobs: Collection[Job], runners: Collection[RunnerStatus]) -> QueueSummary:
    """What stands before a new job."""
    durations = [
        (job.ended_at - job.started_at).total_seconds()
        for job in jobs
        if job.state is JobState.PUBLISHED and job.started_at and job.ended_at
    ]
    return QueueSummary(
        num_waiting=sum(job.state is JobState.WAITING for job in jobs),
        num_running=sum(job.state is JobState.RUNNING for job in jobs),
        num_runners=sum(runner.is_alive for runner in runners),
        job_secs=median(durations) if durations else None,
    )


def _measured_near(target_bpw: float, measured: Sequence[SizeVariant]) -> str:
    near = [rung for rung in measured if abs(rung.target_bpw - target_bpw) <= _NEAR_BPW]
    if not near:
        return ""
    rung = min(near, key=lambda each: abs(each.target_bpw - target_bpw))
    return (
        f"mean KL {significant(rung.mean_kl_nats, 2)} nats and top-1 agreement "
        f"{percent(rung.top1_agreement)} at {rung.target_bpw:g} bits per weight"
    )
