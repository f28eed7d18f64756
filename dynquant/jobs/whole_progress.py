"""Progress of a whole job, from its current step and from how long earlier jobs took per step."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from dynquant.convert import STEPS
from dynquant.jobs.job import Job
from dynquant.jobs.ports import JobEvent

__all__ = ["STEP_BEGINS", "TYPICAL_SHARES", "WholeProgress", "shares_of", "whole_progress"]

STEP_BEGINS = re.compile(r"Step (\w+) begins\.")
"""The line that runners write into the log."""

TYPICAL_SHARES: Mapping[str, float] = {
    "resolve": 0.02,
    "download": 0.05,
    "measure": 0.20,
    "encode": 0.47,
    "verify": 0.09,
    "evaluate": 0.12,
    "card": 0.02,
    "publish": 0.03,
}
"""Share of a job's time that a step takes, before any job has ended here.

As a job for the sample model took it on two cores, with more for the network, which was none.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeProgress:
    """Progress over all steps.

    Attributes:
        fraction: Part of the job that is done, from 0 to 1.
        eta_secs: Time until the job is done; None while its step does not know its own.
    """

    fraction: float
    eta_secs: float | None


def shares_of(histories: Collection[tuple[Sequence[JobEvent], datetime]]) -> Mapping[str, float]:
    """Share of each step in the time of earlier jobs; typical shares without any.

    Args:
        histories: The log of each job, oldest event first, and the time of its end.
    """
    found = [_shares(log, ended_at) for log, ended_at in histories]
    known = [shares for shares in found if shares]
    if not known:
        return TYPICAL_SHARES
    return {step: sum(each.get(step, 0.0) for each in known) / len(known) for step in STEPS}


def whole_progress(job: Job, shares: Mapping[str, float]) -> WholeProgress | None:
    """Progress of a running job; None before its first step.

    The remaining steps are taken to run at the rate of the current step.
    """
    progress = job.progress
    if progress is None:
        return None
    place = STEPS.index(progress.step)
    before = sum(shares[step] for step in STEPS[:place])
    later = sum(shares[step] for step in STEPS[place + 1 :])
    share = shares[progress.step]
    total = before + share + later
    eta_secs = None
    if progress.eta_secs is not None and 0 < progress.fraction < 1 and share > 0:
        left = share * (1 - progress.fraction)
        eta_secs = progress.eta_secs * (left + later) / left
    fraction = (before + share * progress.fraction) / total if total > 0 else 0.0
    return WholeProgress(fraction=fraction, eta_secs=eta_secs)


def _shares(log: Sequence[JobEvent], ended_at: datetime) -> Mapping[str, float]:
    """Share of each step in a job's time; empty for a job that did not do all of its steps here."""
    begun = [
        (found[1], event.at) for event in log if (found := STEP_BEGINS.fullmatch(event.sentence))
    ]
    if {step for step, _ in begun} != set(STEPS):
        return {}
    secs = dict.fromkeys(map(str, STEPS), 0.0)
    ends = [at for _, at in begun[1:]] + [ended_at]
    for (step, at), end in zip(begun, ends, strict=True):
        secs[step] += max(0.0, (end - at).total_seconds())
    total = sum(secs.values())
    return {step: each / total for step, each in secs.items()} if total > 0 else {}
