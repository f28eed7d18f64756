"""All facts of one finished model, for its card and its report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from dynquant.model.access import Access
from dynquant.model.origin import Origin
from dynquant.quant.cache_bits import CacheLoss
from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import LayerProfile, QuantPlan, TextFacts
from dynquant.quant.quality import Quality
from dynquant.quant.speed import MeasuredSpeed, TokenReads
from dynquant.texts.images import ImageFacts

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
        distil: Whether to distil scales and biases at any effort.
        time_budget_mins: After this time no further round of improvements was to begin.
        num_parameters: Parameters in all.
        rows: Original, uniform at the nearest size, this model; in that order.
        memory_bytes: Memory to run at `context_tokens`.
        context_tokens: The stated context.
        calibration: Calibration text.
        evaluation: Evaluation text.
        calibration_images: Images beside the calibration text; None without.
        evaluation_images: Images that questions were asked about; None without.
        reads: The bytes that generating a token reads, with the cache at `context_tokens`; None in
            earlier versions.
        speed: Of this model on the machine that made it; None if it was not timed.
        cache_losses: KL divergence that caches of fewer bits add; empty if they were not tried.
        seed: Seed of the run.
        command: The command that makes this model again, with no path of this machine.
        versions: Tool → version.
        notes: Sentences for users, such as that no plan came closer to the target.
        variants: All models made from the same measurement, with this one, ascending by size.
        gated: The kind of the source's gate, `auto` or `manual`; empty without a gate.
        gated_fields: The `extra_gated_*` fields of the source's card, as they came.
        source_is_private: Whether the source's repo was private.
        menu: The formats to choose from.
        calibration_tokens: Requested number of calibration tokens; 0 if unknown.
        evaluation_tokens: The same of the evaluation text.
        runtimes: The libraries that load the model and compute what was planned, the first as
            `mlx-lm` or `mlx-vlm`.
        num_tower_parameters: Parameters of parts that see or hear, among all.
        tower_bytes: Stored size of these parts, among all.
        tower: How they are stored, see `quant.recipe.Recipe`.
        dtype: Of scales and what is not quantized, see `quant.recipe.Recipe`.
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
    variants: tuple[SizeVariant, ...] = ()
    gated: str = ""
    gated_fields: Mapping[str, object] = field(default_factory=dict)
    source_is_private: bool = False
    source_id: str = ""
    menu: tuple[QuantFormat, ...] = ()
    calibration_tokens: int = 0
    evaluation_tokens: int = 0
    effort: str = "normal"
    distil: bool = False
    time_budget_mins: float | None = None
    runtimes: tuple[str, ...] = ("mlx-lm",)
    num_tower_parameters: int = 0
    tower_bytes: int = 0
    tower: str = "keep"
    dtype: str = "auto"
    calibration_images: ImageFacts | None = None
    evaluation_images: ImageFacts | None = None
    reads: TokenReads | None = None
    speed: MeasuredSpeed | None = None
    cache_losses: tuple[CacheLoss, ...] = ()

    @property
    def sees(self) -> bool:
        """Whether the model keeps a part that sees or hears."""
        return self.tower_bytes > 0

    @property
    def language_bpw(self) -> float:
        """Stored bits per weight of the language model alone."""
        bits = self.plan.stored_bpw * self.num_parameters - 8 * self.tower_bytes
        return bits / (self.num_parameters - self.num_tower_parameters)

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
