"""Everything that a card and a report say about one finished model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import LayerProfile, QuantPlan, TextFacts
from dynquant.quant.quality import Quality

__all__ = ["ModelFacts", "QuantizedRow", "SizeVariant", "TextFacts"]


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
class SizeVariant:
    """One of several models that were made from the same measurement.

    Attributes:
        name: Its name, as in `ModelFacts.name`.
        target_bpw: Requested bits per weight.
        stored_bpw: Stored bits per weight.
        num_bytes: Size of its weights on disk.
        mean_kl_nats: Mean KL(original ‖ quantized) per token.
        mean_kl_se_nats: Its standard error; NaN with a single window.
        top1_agreement: Share of positions with the original's most likely token.
    """

    name: str
    target_bpw: float
    stored_bpw: float
    num_bytes: int
    mean_kl_nats: float
    mean_kl_se_nats: float
    top1_agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """Facts about one quantized model, enough to render its card.

    Attributes:
        name: Name of the quantized model, such as `Qwen3-8B-MLX-4.5bpw`.
        source: Repo id, or the folder's own name for a local model; never a path.
        source_id: The Hub's own id of the repo, see `model.origin.Origin`; may be empty.
        source_is_repo: Whether `source` is a repo on the Hub.
        revision_sha: Commit of the source, or the fingerprint of its weights.
        model_type: Family, such as `qwen3`.
        license_fields: `license`, `license_name`, `license_link` of the source's card,
            as far as it has them.
        layers: The quantizable layers with their costs.
        plan: The chosen formats.
        method: `fisher`, `block_output` or `alignment`.
        encoder: `gptq`, `wls` or `minmax`.
        effort: `fast`, `normal` or `max`.
        refine: Whether scales and biases were to be distilled whatever the effort.
        time_budget_mins: After so long no further round of improving was to begin.
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
        ladder: Every model made from the same measurement, this one too, ascending by size.
        gated: How the source's repo lets people in: `auto` or `manual`; empty for an open one.
        gated_fields: The `extra_gated_*` fields of the source's card, as they came.
        source_is_private: Whether only some may read the source's repo.
        menu: The formats that there were to choose from.
        calibration_tokens: Calibration tokens that were asked for; 0 if that is not known.
        evaluation_tokens: The same of the evaluation text.
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
    ladder: tuple[SizeVariant, ...] = ()
    gated: str = ""
    gated_fields: Mapping[str, object] = field(default_factory=dict)
    source_is_private: bool = False
    source_id: str = ""
    menu: tuple[QuantFormat, ...] = ()
    calibration_tokens: int = 0
    evaluation_tokens: int = 0
    effort: str = "normal"
    refine: bool = False
    time_budget_mins: float | None = None

    @property
    def origin(self) -> Origin:
        """The source, as its quants name it."""
        return Origin(name=self.source, hub_id=self.source_id)

    @property
    def source_access(self) -> Access:
        """Access to the source when it was quantized."""
        return Access(is_private=self.source_is_private, gated=self.gated)

    def cost_nats(self, layer: LayerProfile) -> float:
        """Cost of the chosen format of `layer`; NaN if it was never measured."""
        fmt = self.plan.formats[layer.path]
        # Uniform and `alignment` plans may use formats that were never priced.
        known = fmt in layer.formats[: len(layer.costs_nats)]
        return layer.cost_nats(fmt) if known else math.nan
