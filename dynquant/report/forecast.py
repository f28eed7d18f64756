"""What a target means before any work: sizes on disk and in memory, and the BPW that fits a Mac."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from dynquant.errors import InfeasibleTargetError, InvalidOptionError
from dynquant.quant.plan import ModelInventory
from dynquant.report.quality_summary import gpu_share

__all__ = ["Forecast", "fitting_bpw", "memory_to_run_bytes", "parse_memory"]

_WORKING_SHARE = 0.05  # activations and allocator slack while generating, of weights and cache
_STEP_BPW = 0.01
_UNITS = {"": 1 << 30, "G": 1 << 30, "M": 1 << 20, "T": 1 << 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What quantizing to one target gives and takes.

    Attributes:
        model: Repo id or folder name.
        model_type: Family.
        num_parameters: Parameters in all.
        source_bytes: Size of the original's weights.
        min_bpw: Smallest feasible target.
        max_bpw: Largest feasible target.
        target_bpw: The target.
        size_bytes: Size of the weights on disk at the target.
        context_tokens: Context that `memory_bytes` is for.
        memory_bytes: Memory to run.
        conversion_memory_bytes: Peak memory of the conversion, estimated.
        conversion_disk_bytes: Disk for source and result together.
        notes: Sentences on what of the source the result will not hold, and on layers that no
            format fits.
    """

    model: str
    model_type: str
    num_parameters: int
    source_bytes: int
    min_bpw: float
    max_bpw: float
    target_bpw: float
    size_bytes: int
    context_tokens: int
    memory_bytes: int
    conversion_memory_bytes: int
    conversion_disk_bytes: int
    notes: tuple[str, ...] = ()


def memory_to_run_bytes(weight_bytes: int, cache_bytes: int) -> int:
    """Memory that generation takes: weights, cache and working space."""
    return math.ceil((weight_bytes + cache_bytes) * (1 + _WORKING_SHARE))


def fitting_bpw(inventory: ModelInventory, *, memory_bytes: int, cache_bytes: int) -> float:
    """The largest BPW that runs on a Mac with `memory_bytes`, rounded down to 0.01.

    macOS lets the GPU use two thirds to three quarters of the memory; the rest is left to it.

    Raises:
        InfeasibleTargetError: Even the smallest formats do not fit.
    """
    usable = memory_bytes * gpu_share(memory_bytes / 2**30)
    weight_bytes = usable / (1 + _WORKING_SHARE) - cache_bytes
    bpw = math.floor(8 * weight_bytes / inventory.num_parameters / _STEP_BPW) * _STEP_BPW
    if bpw < inventory.min_bpw:
        raise InfeasibleTargetError(
            f"This model does not fit: {memory_bytes / 2**30:.3g} GB leave room for "
            f"{max(bpw, 0):.2f} bits per weight beside the context, and at least "
            f"{inventory.min_bpw:.2f} are needed. "
            f"Take a smaller --context, more memory or a smaller model.{inventory.why_unquantized}",
            min_bpw=inventory.min_bpw,
            max_bpw=inventory.max_bpw,
        )
    return round(min(bpw, inventory.max_bpw), 6)


def parse_memory(text: str) -> int:
    """Bytes of `16GB`, `16G`, `24` (GB) or `512MB`; units are powers of two, as Macs are sold.

    Raises:
        InvalidOptionError: It is no size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([GMT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise InvalidOptionError(f"'{text}' is no memory size. Write it like '16GB'.")
    return int(float(match[1]) * _UNITS[match[2].upper()])
