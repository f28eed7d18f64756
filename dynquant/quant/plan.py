"""The records between the steps: what a model is made of, what formats cost, what was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

from dynquant.quant.formats import AFFINE_GROUP_SIZES, UNQUANTIZED, QuantFormat
from dynquant.quant.kl_calibration import KlCalibration

__all__ = ["CostTable", "LayerProfile", "ModelInventory", "QuantPlan", "TextFacts"]

_MAX_NAMED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """One quantizable layer and what each format that it may take costs.

    Attributes:
        path: Path of the module in the model, such as `model.layers.0.mlp.up_proj`.
        shape: Shape of its weight, (..., out, in).
        dtype_bits: Width of the dtype that the weight is stored in.
        formats: The formats that it may take; never empty.
        costs_nats: Expected KL divergence per token that each of `formats` brings,
            in the same order; empty before measuring.
    """

    path: str
    shape: tuple[int, ...]
    dtype_bits: int
    formats: tuple[QuantFormat, ...]
    costs_nats: tuple[float, ...] = ()

    @property
    def num_weights(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def is_experts(self) -> bool:
        """Whether it is many matrices, of which a token meets a few, or much like that."""
        return bool(self.shape[:-2])

    def stored_bits(self, fmt: QuantFormat) -> int:
        """Size in bits when stored as `fmt`."""
        return fmt.stored_bits(self.shape, self.dtype_bits)

    def cost_nats(self, fmt: QuantFormat) -> float:
        """Measured cost of `fmt`."""
        return self.costs_nats[self.formats.index(fmt)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInventory:
    """What a model weighs, from its config and safetensors headers alone.

    Attributes:
        model_type: `model_type` of the config, which names the family.
        layers: The quantizable layers, costs not yet measured.
        num_parameters: Parameters as `mlx_lm.utils.get_total_parameters` counts them.
        fixed_bits: Stored size of everything that is never quantized.
        dtype: Name of the dtype of the scales and of unquantized weights.
        together: What the costs of a plan come to on the whole model.
    """

    model_type: str
    layers: tuple[LayerProfile, ...]
    num_parameters: int
    fixed_bits: int
    dtype: str
    together: KlCalibration = field(default_factory=KlCalibration)

    @property
    def has_experts(self) -> bool:
        """Whether some layer is experts."""
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
    def why_unquantized(self) -> str:
        """A sentence on layers that no format fits, with a space before it; empty without any.

        They raise the smallest feasible target, to that of the original if they are all layers.
        """
        stuck = [layer for layer in self.layers if layer.formats == (UNQUANTIZED,)]
        odd = [layer for layer in stuck if layer.shape[-1] % AFFINE_GROUP_SIZES[0]]
        groups = f"MLX quantizes groups of 32, 64 or 128 weights, and their widths ({_widths(odd)})"
        if odd and len(odd) == len(self.layers):
            return f" No layer can be quantized: {groups} are multiples of none of these."
        if stuck and len(stuck) == len(self.layers):
            return (
                " No layer can take a smaller format than its own: the group size of one in "
                f"--formats must divide the widths of the layers ({_widths(stuck)})."
            )
        if odd:
            share = sum(layer.num_weights for layer in odd) / self.num_parameters
            return (
                f" {len(odd)} of {len(self.layers)} layers, {share:.0%} of the weights, cannot be "
                f"quantized: {groups} are multiples of none of these."
            )
        return ""

    def within(self, menu: Sequence[QuantFormat]) -> ModelInventory:
        """The same model when layers may take only formats of `menu`, or stay as they are."""
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
        while self.bpw(bits) > target_bpw:  # whatever the product rounded to
            bits -= 1
        return bits


def _widths(layers: Sequence[LayerProfile]) -> str:
    """The widths of some layers, the smallest first."""
    widths = sorted({layer.shape[-1] for layer in layers})
    more = ", …" if len(widths) > _MAX_NAMED else ""
    return ", ".join(f"{width:,}" for width in widths[:_MAX_NAMED]) + more


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFacts:
    """A text that figures rest on.

    Attributes:
        name: What the person called it: a file name or `org/name:config:split:column`.
        sha256: Hash of the text that was used.
        num_tokens: Tokens that were used.
        window_tokens: Length of a window.
        chat_formatted: Whether all of it went through the model's chat template.
        num_chats: Chats in the text that was read; 0 also in files of earlier versions.
        num_chats_formatted: Those of them that went through the chat template; the others were
            read as plain text.
        chat_refusal: Why the template refused the first of those, on one line; empty if it
            refused none, or there is no template.
        template_date: The date, as in 2024-07-26, that the template was given instead of the day's;
            empty if it asked for none.
        source_sha256: Hash of the file and the name of its column; empty for a dataset.
        sketch: Of the text that was read, as `texts.overlap.Sketch.to_text` writes it, shortened;
            of artefacts only `plan.json` has it, for the calibration text.
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
    """What every format of every layer costs; measured once, used for every target.

    Attributes:
        inventory: The model, with `costs_nats` of every layer filled in.
        method: `fisher`, or `block_output` where the model's blocks cannot be differentiated.
        encoder: The encoder that the costs were computed with.
        effort: A key of `EFFORTS`, what they were measured with.
        calibration: The calibration text.
        seed: Seed of the sampled labels.
        source: Repo id or folder name of the model.
        source_sha: Revision sha or fingerprint of the model's weights.
        scales: Role and bits (`v_proj:4`) → measured over predicted KL, from whole-model
            probes; already multiplied into the costs.
        importance: Path → stored terms of the layers whose importance a forward pass alone
            does not give again (embeddings); opaque here.
        versions: Versions of the tools.
        polished: Target → formats that did better on the whole model than what the costs say.
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


@dataclass(frozen=True, kw_only=True)
class QuantPlan:
    """One format per layer.

    Attributes:
        formats: Path of each quantizable layer to its format, in the model's order.
        target_bpw: What was asked for.
        stored_bpw: What the plan stores; never above `target_bpw`.
        predicted_kl_nats: What the costs of the chosen formats come to together.
        lower_bound_nats: No plan within the budget costs less (the LP bound, or tighter).
    """

    formats: Mapping[str, QuantFormat]
    target_bpw: float
    stored_bpw: float
    predicted_kl_nats: float
    lower_bound_nats: float

    @cached_property
    def most_common(self) -> QuantFormat:
        """The format of the most layers; it becomes the top level of `quantization`."""
        chosen = [fmt for fmt in self.formats.values() if fmt.mode != "unquantized"]
        return max(sorted(set(chosen)), key=chosen.count)
