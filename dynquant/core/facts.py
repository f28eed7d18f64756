"""Everything that a card and a report say about one finished model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dynquant.core.plan import LayerProfile, QuantPlan, TextFacts
from dynquant.core.quality import Quality

__all__ = ["ModelFacts", "QuantizedRow", "TextFacts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedRow:
    """A row of the quality table.

    Attributes:
        label: `Original (bfloat16)`, `Uniform 4-bit, group 64`, or `This model`.
        stored_bpw: Stored bits per weight.
        num_bytes: Size of its weights on disk.
        quality: Measured figures.
    """

    label: str
    stored_bpw: float
    num_bytes: int
    quality: Quality


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Facts about one quantized model, enough to render its card.

    Attributes:
        name: Name of the quantized model, such as `Qwen3-8B-MLX-4.5bpw`.
        source: Repo id, or the folder's own name for a local model; never a path.
        source_is_repo: Whether `source` is a repo on the Hub.
        revision_sha: Commit of the source, or the fingerprint of its weights.
        model_type: Family, such as `qwen3`.
        license_fields: `license`, `license_name`, `license_link` of the source's card,
            as far as it has them.
        layers: The quantizable layers with their costs.
        plan: The chosen formats.
        method: `fisher`, `block_output` or `alignment`.
        encoder: `gptq`, `wls` or `minmax`.
        num_parameters: Parameters in all.
        rows: Original, uniform at the nearest size, this model; in that order.
        memory_bytes: Memory to run at `context_tokens`.
        context_tokens: The stated context.
        calibration: Calibration text.
        evaluation: Evaluation text.
        seed: Seed of the run.
        command: The command that makes this model again, with no path of this machine.
        versions: Tool → version.
        notes: Sentences that a user should know, such as that no plan came closer to the target.
    """

    name: str
    source: str
    source_is_repo: bool
    revision_sha: str
    model_type: str
    license_fields: Mapping[str, str]
    layers: tuple[LayerProfile, ...]
    plan: QuantPlan
    method: str
    encoder: str
    num_parameters: int
    rows: tuple[QuantizedRow, ...]
    memory_bytes: int
    context_tokens: int
    calibration: TextFacts
    evaluation: TextFacts
    seed: int
    command: str
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()
