"""Tensors of a source that its quantized folder will not hold, with notes for users."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from enum import StrEnum
from typing import Any

from dynquant.model.notes import counted, note
from dynquant.model.quantized_sources import Tensor

__all__ = ["Part", "has_tower", "notes_on", "part_of", "parts_of"]

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
_RECOMPUTED = re.compile(
    r"(inv_freq|(cos|sin)_cached|position_ids|masked_bias)$|(^|\.)(rotary_emb|rotary_pos_emb)\."
    # Of 8-bit sources: scales of activations and caches, which MLX keeps in 16 bits.
    r"|(activation|input|output|k|v|q|kv)_(scale|zero_point)$"
)
_VISION = re.compile(
    r"(^|[._])(vision|visual|image|vit|mm_projector|multi_modal_projector|patch_embed"
    r"|multimodal|perceiver|resampler|video|siglip|pixtral)"
)
_AUDIO = re.compile(r"(^|[._])(audio|speech|sound|whisper|conformer|voice|talker|code2wav)")
_DRAFT = re.compile(r"(^|[._])(mtp|nextn|medusa|eagle|multi_token|eh_proj|enorm|hnorm)")
_MASK_AXES = 4  # batch, head, query, key; every loader computes masks itself
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_HEAD = re.compile(r"(^|\.)(lm_head|output|embed_out|head)\.weight$")


class Part(StrEnum):
    """A part of a model that a tensor belongs to."""

    VISION = "vision"
    AUDIO = "audio"
    DRAFT = "draft"
    HEAD = "head"
    RECOMPUTED = "recomputed"
    OTHER = "other"


def has_tower(names: Iterable[str]) -> bool:
    """Whether some of these tensors are of a part that sees or hears."""
    return any(_VISION.search(name) or _AUDIO.search(name) for name in names)


def part_of(name: str, tensor: Tensor, *, num_layers: int | None) -> Part:
    """The part that a tensor which the loader drops belongs to.

    Args:
        name: Of the tensor.
        tensor: Its dtype and shape.
        num_layers: Of the language model; later layers are heads for speculative decoding.
    """
    if _AUDIO.search(name):
        return Part.AUDIO
    if _VISION.search(name):
        return Part.VISION
    layer = _LAYER.search(name)
    if _DRAFT.search(name) or (layer and num_layers is not None and int(layer[1]) >= num_layers):
        return Part.DRAFT
    is_mask = tensor.dtype not in _FLOATS or len(tensor.shape) >= _MASK_AXES
    if _RECOMPUTED.search(name) or is_mask:
        return Part.RECOMPUTED
    return Part.HEAD if _HEAD.search(name) else Part.OTHER


def parts_of(
    names: Iterable[str], tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> dict[Part, list[str]]:
    """Part → the names that belong to it, sorted."""
    text = config.get("text_config")
    settings = {**config, **(text if isinstance(text, Mapping) else {})}
    said = settings.get("num_hidden_layers")
    num_layers = said if isinstance(said, int) else None
    found: dict[Part, list[str]] = {}
    for name in sorted(names):
        found.setdefault(part_of(name, tensors[name], num_layers=num_layers), []).append(name)
    return found


def notes_on(parts: Mapping[Part, Collection[str]]) -> tuple[str, ...]:
    """A sentence for each dropped part that users could expect in the model."""
    return tuple(
        note(part, counted(len(parts[part])))
        for part in (Part.VISION, Part.AUDIO, Part.DRAFT)
        if parts.get(part)
    )
