"""How fast a model generates, for its card: measured where it was made, estimated for Macs."""

from __future__ import annotations

from dataclasses import replace

from dynquant.quant.chips import bandwidth_model, bandwidths_gb_per_sec
from dynquant.quant.speed import MeasuredSpeed, TokenReads
from dynquant.report.facts import ModelFacts
from dynquant.report.numbers import significant, size
from dynquant.texts.markdown import escape, folded, table

__all__ = ["speed_section"]


def speed_section(facts: ModelFacts) -> str:
    """The section of a card; empty if nothing is known."""
    parts = [] if facts.speed is None else [_measured(facts, facts.speed)]
    if facts.reads is not None:
        parts.append(_estimates(facts, facts.reads))
    return "\n\n".join(("## Speed", *parts)) if parts else ""


def _measured(facts: ModelFacts, speed: MeasuredSpeed) -> str:
    runtime = facts.runtimes[0]
    versions = ", ".join(
        f"{name} {facts.versions[name]}" for name in ("mlx", runtime) if name in facts.versions
    )
    return (
        f"Measured in stock {runtime} on the machine that made it, {escape(speed.machine)}"
        f"{f' ({escape(versions)})' if versions else ''}: "
        f"**{significant(speed.generated_tokens_per_sec, 3)} tokens a second** are generated, and "
        f"a prompt of {speed.prompt_tokens:,} tokens is read at "
        f"{significant(speed.prompt_tokens_per_sec, 3)} a second."
    )


def _estimates(facts: ModelFacts, reads: TokenReads) -> str:
    model, short = bandwidth_model(), replace(reads, cache_bytes=0)
    rows = [
        (
            f"{escape(chip)}",
            f"{significant(bandwidth, 3)} GB/s",
            *(
                significant(model.tokens_per_sec(each, bandwidth_gb_per_sec=bandwidth), 2)
                for each in (short, reads)
            ),
        )
        for chip, bandwidth in bandwidths_gb_per_sec().items()
    ]
    header = (
        "Chip",
        "Memory bandwidth",
        "Tokens a second",
        f"Behind {facts.context_tokens:,} tokens",
    )
    cache = f" and, behind {facts.context_tokens:,} tokens, {size(reads.cache_bytes)} of cache"
    legend = (
        f"Each token reads {size(reads.weight_bytes)} of weights"
        f"{cache if reads.cache_bytes else ''}. These are estimates from the bandwidth of the "
        "chip's memory, not measurements; published ones differ by up to 20 percent."
    )
    return folded("Estimates for Macs", f"{table(header, rows, align='lrrr')}\n\n{legend}")
