"""Money and number of the Jobs that run runners, from the Jobs themselves: nothing else is kept.

The labels of a Job name its price for a minute and at its timeout, so that a budget
holds whatever process starts Jobs, and however often it was restarted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dynquant.rented.hardware import billed_micro_usd, dollars
from dynquant.rented.job import RentedJob, Stage
from dynquant.rented.offer import Offer

__all__ = ["Budget", "budget_left_micro_usd", "hindrance", "price_labels", "spent_micro_usd"]

_PRICE, _WORST = "dynquant-micro-usd-per-minute", "dynquant-micro-usd-at-most"
_NUM_FAILURES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Limits of elastic runners: Jobs at once, and their price in 24 hours."""

    at_once: int
    micro_usd_per_day: int


def price_labels(offer: Offer) -> Mapping[str, str]:
    """The labels by which `spent_micro_usd` knows the price of a Job."""
    return {
        _PRICE: str(offer.flavor.micro_usd_per_minute),
        _WORST: str(offer.worst_micro_usd),
    }


def spent_micro_usd(jobs: Sequence[RentedJob]) -> int:
    """The most that these Jobs can have cost: one that is not over counts at its timeout."""
    return sum(map(_cost, jobs))


def budget_left_micro_usd(jobs: Sequence[RentedJob], budget: Budget) -> int:
    """The most that one more Job may cost, beside the Jobs of the last 24 hours."""
    return max(0, budget.micro_usd_per_day - spent_micro_usd(jobs))


def hindrance(jobs: Sequence[RentedJob], budget: Budget) -> str | None:
    """Why no further Job may start, whatever it costs; None if one may.

    Args:
        jobs: Of the last 24 hours, the oldest first.
        budget: The limits.
    """
    if sum(not job.stage.is_over for job in jobs) >= budget.at_once:
        return "As many Jobs run as DYNQUANT_HUB_JOBS_AT_ONCE allows."
    last = [job for job in jobs if job.stage.is_over][-_NUM_FAILURES:]
    if len(last) == _NUM_FAILURES and all(map(_has_failed, last)):
        return (
            f"The last {_NUM_FAILURES} Jobs failed ({last[-1].message or 'without a message'}), so "
            f"no other starts for a day. The log is at {last[-1].url}; delete one of the Jobs on "
            "the Hub to go on sooner."
        )
    if not budget_left_micro_usd(jobs, budget):
        return f"The {dollars(budget.micro_usd_per_day)} for 24 hours are spent."
    return None


def _cost(job: RentedJob) -> int:
    worst = _number(job, _WORST)
    if not job.stage.is_over:
        return worst
    return min(worst, billed_micro_usd(_number(job, _PRICE), job.running_secs))


def _has_failed(job: RentedJob) -> bool:
    """A Job that reached its timeout had too much to do, and did it."""
    return job.stage is Stage.ERROR and "timeout" not in job.message.lower()


def _number(job: RentedJob, label: str) -> int:
    text = job.labels.get(label, "")
    return int(text) if text.isascii() and text.isdigit() else 0
