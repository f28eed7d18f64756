"""The machines that are for rent, from the Hub's own words: `141 GB`, `23 vCPU`, micro-dollars."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

__all__ = [
    "Flavor",
    "affordable_secs",
    "billed_micro_usd",
    "dollars",
    "num_bytes",
    "price_micro_usd",
]

_STARTING_SECS = 300
"""The Hub bills a Job while it starts, too, and does not say whether its timeout counts that."""

_UNITS = {"MB": 10**6, "GB": 10**9, "TB": 10**12}


@dataclass(frozen=True, slots=True, kw_only=True)
class Flavor:
    """A machine for rent.

    Attributes:
        name: Its name, such as `l4x1`.
        gpu: Model of its GPUs, such as `L4`; empty without a GPU.
        gpu_bytes: Memory of one GPU: MLX computes on the first.
        memory_bytes: Its memory.
        disk_bytes: Its disk.
        micro_usd_per_minute: Price of a minute, in millionths of a dollar.
    """

    name: str
    gpu: str
    gpu_bytes: int
    memory_bytes: int
    disk_bytes: int
    micro_usd_per_minute: int


def num_bytes(text: str) -> int:
    """Bytes of `141 GB` or `3000 GB`; 0 if `text` is no size."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT]B)", text.strip())
    return round(float(found[1]) * _UNITS[found[2]]) if found else 0


def price_micro_usd(flavor: Flavor, secs: float) -> int:
    """Price of so many seconds: the Hub bills every minute that has begun."""
    return math.ceil(secs / 60) * flavor.micro_usd_per_minute


def billed_micro_usd(micro_usd_per_minute: int, running_secs: float) -> int:
    """The most that a Job of this price costs after so many seconds, its start included."""
    return math.ceil((running_secs + _STARTING_SECS) / 60) * micro_usd_per_minute


def affordable_secs(micro_usd_per_minute: int, micro_usd: int) -> int:
    """The longest timeout of a Job of this price that costs no more than `micro_usd`."""
    return micro_usd // max(1, micro_usd_per_minute) * 60 - _STARTING_SECS


def dollars(micro_usd: int) -> str:
    """`$1.25`, rounded up to a cent: what is shown is never less than what is paid."""
    return f"${math.ceil(micro_usd / 10**4) / 100:.2f}"
