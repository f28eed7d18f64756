"""Which machine a conversion is offered on, for how long at most, and what that may cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynquant.errors import HubJobError
from dynquant.rented.hardware import (
    Flavor,
    affordable_secs,
    billed_micro_usd,
    dollars,
    price_micro_usd,
)
from dynquant.rented.needs import Needs
from dynquant.report.numbers import size

__all__ = ["Offer", "offer_for"]

# How fast they are beside an H100: from their memory bandwidth and clocks, not measured by us. Most
# of the time goes into kernels of microseconds, so a larger GPU gains little.
_SPEED = {
    "L4": 0.4,
    "A10G": 0.5,
    "L40S": 0.7,
    "A100": 0.8,
    "RTX PRO 6000": 0.9,
    "H100": 1.0,
    "H200": 1.0,
}
"""GPUs that convert: MLX has their kernels, and they compute in bfloat16, which a T4 does not."""

_SHARE = 0.85
"""Of the memory; the rest is for the system."""

_LEAST_MARGIN, _MARGIN = 1.5, 4.0
"""Timeout over expected time, since that is rough: as little as a limit may leave, and else."""

_MIN_TIMEOUT_SECS = 1_800


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A machine, and what is paid for it.

    Attributes:
        flavor: The machine.
        expected_secs: About how long the conversion takes.
        timeout_secs: After so long the Hub ends the Job.
        expected_micro_usd: Price of the expected time.
        worst_micro_usd: Price at the timeout: no more is paid.
    """

    flavor: Flavor
    expected_secs: float
    timeout_secs: int
    expected_micro_usd: int
    worst_micro_usd: int


def offer_for(
    needs: Needs,
    flavors: Sequence[Flavor],
    *,
    name: str | None = None,
    max_micro_usd: int | None = None,
    timeout_secs: int | None = None,
) -> Offer:
    """The cheapest machine by expected price that can do it within a limit.

    Args:
        needs: Of the conversion.
        flavors: The machines for rent.
        name: Take this flavor.
        max_micro_usd: Most to pay, at the timeout; None for no limit.
        timeout_secs: The timeout; None for one by the expected time, shortened to the limit.

    Raises:
        HubJobError: There is no such flavor, none is large enough, or the limit is too low.
    """
    usable = [each for each in flavors if each.gpu in _SPEED]
    if name is not None:
        usable = [_named(name, flavors)]
    large = [each for each in usable if _shortage(each, needs) is None]
    if not large:
        raise HubJobError(_too_small(usable, needs))
    offers = sorted(
        (_offer(each, needs, max_micro_usd, timeout_secs) for each in large),
        key=lambda each: (each.expected_micro_usd, each.expected_secs, each.flavor.name),
    )
    for offer in offers:
        if max_micro_usd is None or offer.worst_micro_usd <= max_micro_usd:
            return offer
    cheapest = min(offers, key=lambda each: each.worst_micro_usd)
    raise HubJobError(
        f"A conversion of about {cheapest.expected_secs / 60:.0f} minutes on "
        f"'{cheapest.flavor.name}' may cost up to {dollars(cheapest.worst_micro_usd)} at its "
        f"timeout, which is over your limit of {dollars(max_micro_usd or 0)}. Raise "
        "--max-dollars, or take a smaller model, fewer targets or --effort fast."
    )


def _offer(
    flavor: Flavor, needs: Needs, max_micro_usd: int | None, timeout_secs: int | None
) -> Offer:
    expected = needs.transfer_secs + needs.compute_secs / _SPEED.get(
        flavor.gpu, min(_SPEED.values())
    )
    if timeout_secs is None:
        timeout_secs = round(max(_MIN_TIMEOUT_SECS, _MARGIN * expected))
        if max_micro_usd is not None:
            affordable = affordable_secs(flavor.micro_usd_per_minute, max_micro_usd)
            least = round(_LEAST_MARGIN * expected)
            timeout_secs = min(timeout_secs, max(least, affordable))
    return Offer(
        flavor=flavor,
        expected_secs=expected,
        timeout_secs=timeout_secs,
        expected_micro_usd=price_micro_usd(flavor, expected),
        worst_micro_usd=billed_micro_usd(flavor.micro_usd_per_minute, timeout_secs),
    )


def _named(name: str, flavors: Sequence[Flavor]) -> Flavor:
    for each in flavors:
        if each.name == name:
            if each.gpu not in _SPEED:
                raise HubJobError(
                    f"'{name}' has no GPU that MLX converts on. Choose one of: {_names(flavors)}."
                )
            return each
    raise HubJobError(
        f"The Hub rents no machine '{name[:60]}' now. Choose one of: {_names(flavors)}."
    )


def _names(flavors: Sequence[Flavor]) -> str:
    return ", ".join(each.name for each in flavors if each.gpu in _SPEED) or "none"


def _shortage(flavor: Flavor, needs: Needs) -> str | None:
    """The part of a machine that is too small for the needs; None if there is none."""
    if _SHARE * flavor.gpu_bytes < needs.memory_bytes:
        return f"{size(flavor.gpu_bytes)} of GPU memory"
    if _SHARE * flavor.memory_bytes < needs.memory_bytes:
        return f"{size(flavor.memory_bytes)} of memory"
    if _SHARE * flavor.disk_bytes < needs.disk_bytes:
        return f"{size(flavor.disk_bytes)} of disk"
    return None


def _too_small(usable: Sequence[Flavor], needs: Needs) -> str:
    need = f"{size(needs.memory_bytes)} of memory and {size(needs.disk_bytes)} of disk"
    if len(usable) == 1:
        return (
            f"'{usable[0].name}' has {_shortage(usable[0], needs)}, and this conversion needs "
            f"about {need}. Leave --flavor out, or name a larger one."
        )
    return (
        f"This conversion needs about {need}, and no machine with a GPU that the Hub rents now "
        "has as much. Take a smaller model."
    )
