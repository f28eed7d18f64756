"""The records between the steps: a model's layers, the costs of formats, the chosen plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from dynquant.quant.formats import AFFINE_GROUP_SIZES, UNQUANTIZED, QuantFormat
from dynquant.quant.kl_calibration import KlCalibration
from dynquant.texts.images import ImageFacts

__all__ = ["CostTable", "LayerProfile", "ModelInventory", "QuantPlan", "TextFacts"]

_MAX_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """One quantizable layer, with the cost of each format that it may take.

    Attributes:
        path: Path of the module in the model, such as `model.layers.0.mlp.up_proj`.
        shape: Shape of its weight, (..., out, in).
        dtype_bits: Width of the dtype that the weight is stored in.
        formats: The formats that it may take; never empty.
        costs_nats: Expected KL divergence per token that each of `formats` brings,
            in the same order; empty before measuring.
        num_copies: Under how many names the weight is stored, see `quant.mlx.copies`.
    """

    path: str
    shape: tuple[int, ...]
    dtype_bits: int
    formats: tuple[QuantFormat, ...]
    costs_nats: tuple[float, ...] = ()
    num_copies: int = 1

    @property
    def num_weights(self) -> int:
        """Number of weights that are stored."""
        return self.num_copies * prod(self.shape)

    @property
    def is_experts(self) -> bool:
        """Whether the weight is a stack of matrices, as of experts: a token goes through a few."""
        return bool(self.shape[:-2])

    def stored_bits(self, fmt: QuantFormat) -> int:
        """Size in bits when stored as `fmt`."""
        return self.num_copies * fmt.stored_bits(self.shape, self.dtype_bits)

    def cost_nats(self, fmt: QuantFormat) -> float:
        """Measured cost of `fmt`."""
        return self.costs_nats[self.formats.index(fmt)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInventory:
    """The layers and sizes of a model, from its config and safetensors headers alone.

    Attributes:
        model_type: `model_type` of the config, which names the family.
        layers: The quantizable layers, costs not yet measured.
        num_parameters: Parameters as `mlx_lm.utils.get_total_parameters` counts them.
        fixed_bits: Stored size of all arrays that are never quantized.
        dtype: Name of the dtype of the scales and of unquantized weights.
        together: Predicts the KL divergence of a whole plan from its summed costs.
        num_tower_parameters: Parameters of parts that see or hear, among all.
        tower_bits: Stored size of these parts, among all.
    """

    model_type: str
    layers: tuple[LayerProfile, ...]
    num_parameters: int
    fixed_bits: int
    dtype: str
    together: KlCalibration = field(default_factory=KlCalibration)
    num_tower_parameters: int = 0
    tower_bits: int = 0

    @property
    def has_experts(self) -> bool:
        """Whether the model has layers of experts."""
        return any(layer.is_experts for layer in self.layers)

    @property
    def min_bpw(self) -> float:
        """Stored bits per weight with the smallest format everywhere."""
        smallest = sum(min(map(layer.stored_bits, layer.formats)) for layer in self.layers)
        return self.bpw(smallest)

    @property
    def max_bpw(self) -> float:
        """Stored bits per weight with the largest format everywhere."""
        largest = sum(max(map(layer.stored_bits, layer.formats)) for layer in self.layers)
        return self.bpw(largest)

    @property
    def source_bpw(self) -> float:
        """Stored bits per weight of the original, in the dtype that it is read in."""
        layers = sum(layer.stored_bits(UNQUANTIZED) for layer in self.layers)
        return self.bpw(layers)

    @property
    def why_unquantized(self) -> str:
        """A sentence on layers that no format fits, with a space before it; empty without any.

        Such layers raise the smallest feasible target; if no layer fits a format, up to the
        original's size.
        """
        stuck = [layer for layer in self.layers if layer.formats == (UNQUANTIZED,)]
        odd = [layer for layer in stuck if layer.shape[-1] % AFFINE_GROUP_SIZES[0]]
        groups = f"MLX quantizes groups of 32, 64 or 128 weights, and their widths ({_widths(odd)})"
        if odd and len(odd) == len(self.layers):
            return f" No layer can be quantized: {groups} are multiples of none of these."
        if stuck and len(stuck) == len(self.layers):
            return (
                " No layer can take a smaller format than its own: the formats must have a group "
                f"size that divides the widths of the layers ({_widths(stuck)})."
            )
        if odd:
            share = sum(layer.num_weights for layer in odd) / self.num_parameters
            return (
                f" {len(odd)} of {len(self.layers)} layers, {share:.0%} of the weights, cannot be "
                f"quantized: {groups} are multiples of none of these."
            )
        return ""

    def within(self, menu: Sequence[QuantFormat]) -> ModelInventory:
        """The same model with layers that may take only formats of `menu`, or stay as they are."""
        layers = (
            replace(
                layer,
                formats=tuple(fmt for fmt in menu if fmt.fits(layer.shape)) or (UNQUANTIZED,),
            )
            for layer in self.layers
        )
        return replace(self, layers=tuple(layers))

    def bpw(self, layer_bits: int) -> float:
        """Stored bits per weight of the model when its layers take `layer_bits` in all."""
        return (self.fixed_bits + layer_bits) / self.num_parameters

    def budget_bits(self, target_bpw: float) -> int:
        """Most bits that the layers may take, such that `bpw(bits) <= target_bpw` as floats."""
        bits = int(target_bpw * self.num_parameters) - self.fixed_bits + 1
        while self.bpw(bits) > target_bpw:  # the product may have been rounded up or down
            bits -= 1
        return bits


def _widths(layers: Sequence[LayerProfile]) -> str:
    """The widths of some layers, the smallest first."""
    widths = sorted({layer.shape[-1] for layer in layers})
    more = ", …" if len(widths) > _MAX_NAMED else ""
    return ", ".join(f"{width:,}" for width in widths[:_MAX_NAMED]) + more


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """A text that was calibrated or evaluated on.

    Attributes:
        name: The name that the person gave: a file name or `org/name:config:split:column`.
        sha256: Hash of the text that was used.
        num_tokens: Tokens that were used.
        window_tokens: Length of a window.
        chat_formatted: Whether all of it went through the model's chat template.
        num_chats: Chats in the text that was read; 0 also in files of earlier versions.
        num_chats_formatted: Chats that went through the chat template; the others were read as
            plain text.
        chat_refusal: The template's error for the first chat that it refused, on one line; empty
            if it refused no chat, or the model has no template.
        template_date: The fixed date, as in 2024-07-26, that the template was given as today's;
            empty if it did not ask for the date.
        source_sha256: Hash of the file and the name of its column; empty for a dataset.
        sketch: Sketch of the text that was read, as `texts.overlap.Sketch.to_text` writes it,
            shortened; among artefacts only `plan.json` has it, for the calibration text.
    """

    name: str
    sha256: str
    num_tokens: int
    window_tokens: int
    chat_formatted: bool = False
    num_chats: int = 0
    num_chats_formatted: int = 0
    chat_refusal: str = ""
    template_date: str = ""
    source_sha256: str = ""
    sketch: str = field(default="", compare=False, repr=False)

    def is_same_text(self, other: TextFacts) -> bool:
        """Whether the same windows were cut of the same text, whatever its name."""
        mine, theirs = (
            (facts.sha256, facts.num_tokens, facts.window_tokens) for facts in (self, other)
        )
        return mine == theirs


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """The cost of every format of every layer; measured once, used for every target.

    Attributes:
        inventory: The model, with `costs_nats` of every layer filled in.
        method: `fisher`, or `block_output` where the model's blocks cannot be differentiated.
        encoder: The encoder that the costs were computed with.
        effort: The effort that they were measured with, a key of `EFFORTS`.
        calibration: The calibration text.
        calibration_images: Images beside it; None without.
        seed: Seed of the sampled labels.
        source: Repo id or folder name of the model.
        source_sha: Revision sha or fingerprint of the model's weights.
        scales: Role and bits (`v_proj:4`) → measured over predicted KL, from whole-model
            probes; already multiplied into the costs.
        importance: Path → stored terms of the layers whose importance another forward pass alone
            cannot restore (embeddings); opaque here.
        versions: Versions of the tools.
        polished: Target → formats with less KL divergence on the whole model than those that the
            costs choose.
    """

    inventory: ModelInventory
    method: str
    encoder: str
    effort: str
    calibration: TextFacts
    seed: int
    source: str
    source_sha: str
    scales: Mapping[str, float]
    importance: Mapping[str, tuple[tuple[str, str], ...]]
    versions: Mapping[str, str]
    polished: Mapping[float, Mapping[str, QuantFormat]] = field(default_factory=dict)
    calibration_images: ImageFacts | None = None


@dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """One format per layer.

    Attributes:
        formats: Path of each quantizable layer to its format, in the model's order.
        target_bpw: The target of the request.
        stored_bpw: Stored bits per weight of the plan; never above `target_bpw`.
        predicted_kl_nats: KL divergence predicted from the costs of the chosen formats.
        lower_bound_nats: No plan within the budget costs less (the LP bound, or tighter).
    """

    formats: Mapping[str, QuantFormat]
    target_bpw: float
    stored_bpw: float
    predicted_kl_nats: float
    lower_bound_nats: float

    @cached_property
    def most_common(self) -> QuantFormat:
        """The most frequent format; it becomes the top level of `quantization`."""
        chosen = [fmt for fmt in self.formats.values() if fmt.mode != "unquantized"]
        return max(sorted(set(chosen)), key=chosen.count)
