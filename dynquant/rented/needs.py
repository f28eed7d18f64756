"""The needs of a conversion on a rented machine, from a model's headers: memory, disk and time.

Memory follows `quant.mlx.memory.conversion_bytes`, without MLX and from the tensors' own names, so
that any laptop can ask; the tests hold the two against each other.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from math import prod

from dynquant.quant.plan import LayerProfile, ModelInventory
from dynquant.quant.recipe import Recipe
from dynquant.report.forecast import weight_bytes

__all__ = ["Needs", "needs_of"]

_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_BYTES = 4
"""Of a value in the widest dtype that is computed in."""

_PROCESS_BYTES = 2 << 30
"""Python, MLX and CUDA's own part."""

_BLOCKS = 4
"""Copies of the largest block: original, quantized, gradients, codes."""

_HEAD_COPIES = 3
_LOGITS_BYTES = 1 << 30
_WAITING_BYTES = 1 << 28
_BACKWARD_TOKENS = 4_096
_MAX_FITTING_TOKENS = 1 << 17
_STATES_COPIES = 4
_MAX_GRAM_BYTES = 4 << 30

_PACKAGES_BYTES = 8 * 10**9
"""The image's layer that is written: dynquant, MLX and NVIDIA's libraries."""

# Seconds for a billion weights and 32,768 tokens. Measured: 8 B at `fast` on an H100, 333 s
# (docs/performance.md). The others are that figure times the work of their passes: rough.
_SECS_PER_BILLION = {"fast": 45.0, "normal": 150.0, "max": 600.0}
_TOKENS = 32_768
_MORE_TARGETS = 0.5
"""Each further target encodes and evaluates, and measures nothing."""

_START_SECS = 240.0
"""To pull the image and to install the packages."""

_BYTES_PER_SEC = 100e6
"""Of downloads and uploads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The needs of a conversion.

    Attributes:
        memory_bytes: Of the GPU and of the machine, each.
        disk_bytes: For packages, original and results.
        transfer_secs: To start, to download and to upload, on any machine.
        compute_secs: To compute on an H100.
    """

    memory_bytes: int
    disk_bytes: int
    transfer_secs: float
    compute_secs: float


def needs_of(inventory: ModelInventory, recipe: Recipe) -> Needs:
    """The needs of a conversion of the model with these layers to the targets of `recipe`."""
    source_bytes = weight_bytes(inventory.source_bpw, inventory.num_parameters)
    results = sum(weight_bytes(bpw, inventory.num_parameters) for bpw in recipe.targets_bpw)
    rate = _SECS_PER_BILLION["max" if recipe.distil else recipe.effort]
    tokens = recipe.calibration_tokens + recipe.evaluation_tokens
    passes = 1 + _MORE_TARGETS * (len(recipe.targets_bpw) - 1)
    work = inventory.num_parameters / 1e9 * max(1.0, tokens / _TOKENS)
    return Needs(
        memory_bytes=_memory_bytes(inventory, recipe),
        disk_bytes=_PACKAGES_BYTES + source_bytes + results * (1 + recipe.fits_blocks),
        transfer_secs=_START_SECS + (source_bytes + results) / _BYTES_PER_SEC,
        compute_secs=rate * work * passes + 60.0,
    )


def _memory_bytes(inventory: ModelInventory, recipe: Recipe) -> int:
    blocks: Counter[str] = Counter()  # block → weights
    grams: Counter[str] = Counter()  # the layers that MLX joins to one → bytes of their products
    outer: list[LayerProfile] = []
    for layer in inventory.layers:
        number = _NUMBER.search(layer.path)
        if number is None:
            outer.append(layer)
            continue
        blocks[layer.path[: number.end()]] += layer.num_weights
        joined = layer.path[: number.end()] + _NUMBER.sub("", layer.path[number.end() :])
        grams[joined] += 4 * prod(layer.shape[:-2]) * layer.shape[-1] ** 2
    block_bytes = _BYTES * max(blocks.values(), default=0)
    gram_bytes = max((each for each in grams.values() if each <= _MAX_GRAM_BYTES), default=0)
    head_bytes = _BYTES * max((layer.num_weights for layer in outer), default=0)
    width = max((layer.shape[-1] for layer in outer or inventory.layers), default=0)
    fitting_tokens = min(recipe.fitting_tokens, _MAX_FITTING_TOKENS)
    recorded = _BACKWARD_TOKENS * len(blocks) + 2 * recipe.calibration_tokens
    at_block = 2 * (block_bytes + gram_bytes)
    at_head = _HEAD_COPIES * head_bytes + _LOGITS_BYTES
    measuring = max(at_block, at_head) + _BYTES * width * recorded + _WAITING_BYTES
    fitting = _BLOCKS * block_bytes + _STATES_COPIES * _BYTES * width * fitting_tokens
    return max(measuring, fitting) + _PROCESS_BYTES
