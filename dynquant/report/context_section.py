"""The cache of keys and values on a card: size, quality in fewer bits, contexts that fit."""

from __future__ import annotations

import math

from dynquant.quant.cache_bits import CacheLoss, cache_share
from dynquant.quant.speed import TokenReads
from dynquant.report.facts import ModelFacts
from dynquant.report.forecast import context_that_fits
from dynquant.report.numbers import percent, size, with_error
from dynquant.report.quality_summary import MAC_MEMORY_GIB
from dynquant.texts.markdown import DASH, code, folded, table

__all__ = ["context_section"]

_NUM_MACS = 4
_SMALL_SHARE = 0.1
"""A cache that adds at most this share of what the weights lost changes little."""


def context_section(facts: ModelFacts) -> str:
    """The section of a card; empty where caches of fewer bits were not tried."""
    if not facts.cache_losses or facts.reads is None or not facts.reads.cache_bytes:
        return ""
    details = f"{_caches(facts, facts.reads)}\n\n{_macs(facts, facts.reads)}"
    return "\n\n".join(
        ("## Context", _advice(facts), folded("Caches, flags and contexts that fit", details))
    )


def _caches(facts: ModelFacts, reads: TokenReads) -> str:
    per_token_bytes = reads.cache_bytes / facts.context_tokens
    rows = [("16 bits", size(round(per_token_bytes)), "0", "")]
    for loss in facts.cache_losses:
        share = cache_share(loss.bits, loss.group_size)
        figure = with_error(loss.mean_kl_nats, loss.mean_kl_se_nats, digits=2)
        rows.append(
            (f"{loss.bits} bits", size(round(share * per_token_bytes)), figure, code(_flags(loss)))
        )
    header = ("Cache", "Each token", "Mean KL that it adds (nats)", "With `mlx_lm.generate`")
    tokens = facts.cache_losses[0].num_tokens
    legend = (
        f"Measured in stock mlx-lm on {tokens:,} tokens of the held-out text in one window, beside "
        "this model with a cache of 16 bits; ± is one standard error."
    )
    return f"{table(header, rows, align='lrrl')}\n\n{legend}"


def _flags(loss: CacheLoss) -> str:
    return f"--kv-bits {loss.bits} --kv-group-size {loss.group_size} --quantized-kv-start 0"


def _advice(facts: ModelFacts) -> str:
    """The fewest bits that add little to what the weights lost."""
    lost_nats = facts.rows[-1].quality.mean_kl_nats
    fewest = min(facts.cache_losses, key=lambda each: each.bits)
    small = [
        each
        for each in facts.cache_losses
        if math.isfinite(lost_nats) and each.mean_kl_nats <= _SMALL_SHARE * lost_nats
    ]
    if not small:
        return "With fewer bits than 16 the cache costs more than a tenth of what the weights lost."
    best = min(small, key=lambda each: each.bits)
    share = percent(max(best.mean_kl_nats, 0.0) / lost_nats)
    text = f"A cache of {best.bits} bits adds {share} to what quantizing the weights lost."
    if best is not fewest:
        share = percent(fewest.mean_kl_nats / lost_nats)
        text += f" A cache of {fewest.bits} bits adds {share}."
    return text


def _macs(facts: ModelFacts, reads: TokenReads) -> str:
    """Tokens that fit beside the weights on the smallest Macs that hold the model."""
    widths = (16, *(loss.bits for loss in facts.cache_losses))
    shares = (1.0, *(cache_share(loss.bits, loss.group_size) for loss in facts.cache_losses))
    rows = []
    for memory_gib in MAC_MEMORY_GIB:
        contexts = [
            context_that_fits(
                memory_bytes=memory_gib * 2**30,
                weight_bytes=facts.rows[-1].num_bytes,
                cache_bytes_per_token=share * reads.cache_bytes / facts.context_tokens,
            )
            for share in shares
        ]
        if max(contexts) > 0:
            rows.append((f"{memory_gib} GB", *(f"{each:,}" if each else DASH for each in contexts)))
    header = ("Mac with", *(f"{bits} bits" for bits in widths))
    return (
        "Tokens of context for which the memory suffices (the model's own limit may be lower):\n\n"
        + table(header, rows[:_NUM_MACS], align="r" * len(header))
    )
