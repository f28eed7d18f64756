"""How fast a model generates: what a token reads, measured figures, estimates for other machines.

Generating is bound by memory: a token reads each weight that it goes through once. From the bytes
that are read and a chip's memory bandwidth follows an estimate,

    secs = (weight bytes + cache bytes) / (share · bandwidth) + blocks · secs per block.

The share and the times per block come from figures that people published for MLX on Macs; they
stand beside the chips in `chips.json`, each with its source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import LayerProfile, ModelInventory

__all__ = [
    "BandwidthModel",
    "MeasuredSpeed",
    "TokenReads",
    "reads_at_bpw",
    "reads_of",
    "weights_read",
]

MAX_MACHINE_CHARS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenReads:
    """The bytes that generating one token reads.

    Attributes:
        weight_bytes: Stored bytes of the weights that a token goes through.
        cache_bytes: Key-value cache at the stated context, which it reads too.
        num_blocks: Blocks of the model.
        has_experts: Whether some of them choose experts for each token.
    """

    weight_bytes: int
    cache_bytes: int
    num_blocks: int
    has_experts: bool = False

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> TokenReads:
        """The record of its fields as JSON types.

        Raises:
            ValueError, TypeError, KeyError: It is another record.
        """
        counts = {name: _whole(raw[name]) for name in ("weight_bytes", "cache_bytes", "num_blocks")}
        return cls(**counts, has_experts=raw["has_experts"] is True)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSpeed:
    """Speed of a written model in its stock runtime.

    Attributes:
        machine: The chip, and whether its GPU or CPU ran, such as `Apple M4 Pro, GPU`.
        prompt_tokens: Length of the prompt.
        prompt_tokens_per_sec: Speed of reading the prompt.
        generated_tokens: Tokens that were generated behind it.
        generated_tokens_per_sec: Speed of generating them.
    """

    machine: str
    prompt_tokens: int
    prompt_tokens_per_sec: float
    generated_tokens: int
    generated_tokens_per_sec: float

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> MeasuredSpeed:
        """The record of its fields as JSON types, perhaps by a process that is not trusted.

        Raises:
            ValueError, TypeError, KeyError: It is another record.
        """
        machine = raw["machine"]
        if not isinstance(machine, str):
            raise TypeError(machine)
        return cls(
            machine="".join(filter(str.isprintable, machine))[:MAX_MACHINE_CHARS],
            prompt_tokens=_whole(raw["prompt_tokens"]),
            prompt_tokens_per_sec=_rate(raw["prompt_tokens_per_sec"]),
            generated_tokens=_whole(raw["generated_tokens"]),
            generated_tokens_per_sec=_rate(raw["generated_tokens_per_sec"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BandwidthModel:
    """Time to generate a token, by the bandwidth of a machine's memory.

    Attributes:
        share: Share of the bandwidth that reading weights reaches.
        secs_per_block: Time of a block beside reading its weights.
        secs_per_expert_block: The same of a block that chooses experts.
    """

    share: float
    secs_per_block: float
    secs_per_expert_block: float

    def weight_bytes_at(
        self, tokens_per_sec: float, reads: TokenReads, *, bandwidth_gb_per_sec: float
    ) -> float:
        """Most bytes of weights that a token may read at this speed; perhaps negative.

        Args:
            tokens_per_sec: Speed of generating.
            reads: The same model's blocks and cache.
            bandwidth_gb_per_sec: In units of 10⁹ bytes per second.
        """
        per_block = self.secs_per_expert_block if reads.has_experts else self.secs_per_block
        reading_secs = 1 / tokens_per_sec - per_block * reads.num_blocks
        return reading_secs * self.share * bandwidth_gb_per_sec * 1e9 - reads.cache_bytes

    def tokens_per_sec(self, reads: TokenReads, *, bandwidth_gb_per_sec: float) -> float:
        """Estimated speed of generating.

        Args:
            reads: The bytes that a token reads.
            bandwidth_gb_per_sec: In units of 10⁹ bytes per second.
        """
        per_block = self.secs_per_expert_block if reads.has_experts else self.secs_per_block
        num_bytes = reads.weight_bytes + reads.cache_bytes
        reading_secs = num_bytes / (self.share * bandwidth_gb_per_sec * 1e9)
        return 1 / (reading_secs + per_block * reads.num_blocks)


def reads_of(
    inventory: ModelInventory,
    formats: Mapping[str, QuantFormat],
    shares: Mapping[str, float],
    *,
    cache_bytes: int,
    num_blocks: int,
) -> TokenReads:
    """The bytes that a token reads of a model with these formats.

    Args:
        inventory: The model's layers.
        formats: Path of each layer → its format.
        shares: Path → share of the layer's weights that a token reads: 1 of a dense layer, k/E of
            experts of which k of E are chosen, 0 of an embedding that is looked up.
        cache_bytes: Key-value cache at the stated context.
        num_blocks: Blocks of the model.
    """
    bits = math.fsum(
        layer.stored_bits(formats[layer.path]) / layer.num_weights * weights_read(layer, shares)
        for layer in inventory.layers
    )
    return _token_reads(inventory, bits, cache_bytes=cache_bytes, num_blocks=num_blocks)


def reads_at_bpw(
    inventory: ModelInventory,
    bpw: float,
    shares: Mapping[str, float],
    *,
    cache_bytes: int,
    num_blocks: int,
) -> TokenReads:
    """The bytes that a token reads at `bpw`, before there is a plan: all layers at the same BPW."""
    weights = sum(layer.num_weights for layer in inventory.layers)
    read = math.fsum(weights_read(layer, shares) for layer in inventory.layers)
    per_weight = (bpw * inventory.num_parameters - inventory.fixed_bits) / weights if weights else 0
    bits = read * per_weight
    return _token_reads(inventory, bits, cache_bytes=cache_bytes, num_blocks=num_blocks)


def weights_read(layer: LayerProfile, shares: Mapping[str, float]) -> float:
    """Weights of a layer that a token reads; a layer without a share counts whole, copies once."""
    return layer.num_weights / layer.num_copies * shares.get(layer.path, 1.0)


def _token_reads(
    inventory: ModelInventory, bits: float, *, cache_bytes: int, num_blocks: int
) -> TokenReads:
    # Norms and the like are read whole; a tower works once per image.
    fixed_bits = max(0, inventory.fixed_bits - inventory.tower_bits)
    return TokenReads(
        weight_bytes=round((bits + fixed_bits) / 8),
        cache_bytes=cache_bytes,
        num_blocks=num_blocks,
        has_experts=inventory.has_experts,
    )


def _whole(raw: object) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool):
        raise TypeError(raw)
    if not 0 <= raw < 2**63:
        raise ValueError(raw)
    return raw


def _rate(raw: object) -> float:
    if not isinstance(raw, int | float) or isinstance(raw, bool):
        raise TypeError(raw)
    if not (math.isfinite(raw) and raw > 0):
        raise ValueError(raw)
    return float(raw)
