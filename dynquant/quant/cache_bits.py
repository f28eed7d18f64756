"""Fewer bits for the cache of keys and values: their size, and what they cost in quality."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "CACHE_BITS",
    "FULL_BITS",
    "GROUP_SIZES",
    "CacheLoss",
    "cache_losses_in",
    "cache_share",
]

CACHE_BITS = (8, 4)
"""Widths of a quantized cache that stock mlx-lm runs, beside 16 bits."""

GROUP_SIZES = (64, 32)
FULL_BITS = 16
_SCALE_AND_BIAS_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLoss:
    """KL divergence that a quantized cache adds to a model, which it is compared with.

    Attributes:
        bits: Width of keys and values.
        group_size: Values that share a scale and a bias.
        mean_kl_nats: Mean KL(cache of 16 bits ‖ this cache) per token of one long window.
        mean_kl_se_nats: Its standard error, over stretches of the window.
        num_tokens: Tokens of the window that read a quantized cache.
    """

    bits: int
    group_size: int
    mean_kl_nats: float
    mean_kl_se_nats: float
    num_tokens: int

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> CacheLoss:
        """The record of its fields as JSON types, perhaps by a process that is not trusted.

        Raises:
            ValueError, TypeError, KeyError: It is another record.
        """
        bits, group_size, num_tokens = (raw[name] for name in ("bits", "group_size", "num_tokens"))
        kl_nats, se_nats = raw["mean_kl_nats"], raw["mean_kl_se_nats"]
        if not (bits in CACHE_BITS and group_size in GROUP_SIZES and type(num_tokens) is int):
            raise ValueError(raw)
        if not (type(kl_nats) is type(se_nats) is float and num_tokens > 0):
            raise TypeError(raw)
        if not (math.isfinite(kl_nats) and 0 <= se_nats < math.inf):
            raise ValueError(raw)
        return cls(
            bits=bits,
            group_size=group_size,
            mean_kl_nats=kl_nats,
            mean_kl_se_nats=se_nats,
            num_tokens=num_tokens,
        )


def cache_losses_in(raw: Sequence[Mapping[str, Any]]) -> tuple[CacheLoss, ...]:
    """One entry for each width, perhaps by a process that is not trusted.

    Raises:
        ValueError, TypeError, KeyError: They are other records, or more.
    """
    if len(raw) > len(CACHE_BITS):
        raise ValueError(raw)
    return tuple(map(CacheLoss.from_json, raw))


def cache_share(bits: int, group_size: int = GROUP_SIZES[0]) -> float:
    """Size of a cache of `bits` as a share of that of 16 bits; each group has a scale and a bias.

    Args:
        bits: 16, or one of `CACHE_BITS`.
        group_size: Values that share a scale and a bias.
    """
    if bits == FULL_BITS:
        return 1.0
    return (bits + _SCALE_AND_BIAS_BITS / group_size) / FULL_BITS
