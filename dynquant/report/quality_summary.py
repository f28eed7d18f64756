"""One sentence for each figure of a model: its meaning."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dynquant.quant.quality import Quality
from dynquant.quant.recipe import EFFORTS
from dynquant.report.facts import ModelFacts, QuantizedRow, SizeVariant
from dynquant.report.numbers import percent, significant, with_error
from dynquant.texts.markdown import DASH, escape

__all__ = [
    "choice",
    "comparison",
    "fitting_macs",
    "gpu_bytes",
    "gpu_share",
    "prediction",
    "recommendation",
    "smallest_mac_gib",
]

# Mean KL divergence bounds the average change of the next token's probabilities: by Pinsker's
# inequality their total variation is at most √(KL/2). The bands are 5, 10 and 20 % of the
# probability moved. A model must also choose the same token often enough: otherwise greedy text
# differs from the original's within a few words at any KL.
NEARLY_SAME_KL_NATS = 0.005
CLOSE_KL_NATS = 0.02
DIFFERENT_KL_NATS = 0.08
NEARLY_SAME_TOP1 = 0.95
CLOSE_TOP1 = 0.90
DIFFERENT_TOP1 = 0.80

# Two means differ when they lie further apart than two standard errors of their difference.
# Both rows are measured on the same windows, so the true error is smaller: a cautious test.
SIGNIFICANT_STANDARD_ERRORS = 2.0

# Unified memory of the Macs with Apple silicon, in GiB.
MAC_MEMORY_GIB = (8, 16, 18, 24, 32, 36, 48, 64, 96, 128, 192, 256, 512)
# Metal's default limit for the GPU (`recommendedMaxWorkingSetSize`): two
# thirds of the memory, three quarters from 36 GiB on; 28991 MB were logged on 36 GiB.
# Newer systems allow more, so these are cautious.
SMALL_MAC_GPU_SHARE = 2 / 3
LARGE_MAC_GPU_SHARE = 3 / 4
LARGE_MAC_GIB = 36

_BANDS = (
    (NEARLY_SAME_KL_NATS, NEARLY_SAME_TOP1, "hardly distinguishable from the original"),
    (CLOSE_KL_NATS, CLOSE_TOP1, "close to the original for most uses"),
    (
        DIFFERENT_KL_NATS,
        DIFFERENT_TOP1,
        "noticeably different from the original, a choice for when memory is short",
    ),
)
_GOOD_BANDS = tuple(words for *_, words in _BANDS[:2])
_BEYOND_BANDS = "clearly worse than the original, a choice only where nothing larger fits"


def recommendation(facts: ModelFacts) -> str:
    """One line: size, distance from the original, and recommended use."""
    original, ours = facts.rows[0], facts.rows[-1]
    parts = [f"{ours.stored_bpw:.2f} bits per weight"]
    if original.num_bytes > 0:
        parts[0] += f", {percent(ours.num_bytes / original.num_bytes)} of the original size"
    kl_nats, top1 = ours.quality.mean_kl_nats, ours.quality.top1_agreement
    if not (math.isfinite(kl_nats) and math.isfinite(top1)):
        return f"{parts[0]}; its distance from the original was not measured."
    parts.append(
        f"mean KL {significant(kl_nats, 2)} nats, top-1 agreement {percent(top1)}: "
        f"{_band(kl_nats, top1)}."
    )
    return "; ".join(parts)


def comparison(ours: QuantizedRow, uniform: QuantizedRow) -> str:
    """This model compared with a uniform quant, with both sizes."""
    label = escape(uniform.label)
    sizes = f"{ours.stored_bpw:.3f} bits per weight here, {uniform.stored_bpw:.3f} in “{label}”"
    kl_ours, kl_uniform = ours.quality.mean_kl_nats, uniform.quality.mean_kl_nats
    if not (math.isfinite(kl_ours) and math.isfinite(kl_uniform)):
        return f"Beside uniform quantization ({sizes}) there is no measured KL to compare."
    if _indistinguishable(ours.quality, uniform.quality):
        return (
            f"Beside uniform quantization ({sizes}) the difference in mean KL lies within the "
            "error of the measurement: neither is shown to be better."
        )
    if kl_ours < kl_uniform:
        return (
            f"The uniform model is {_times(kl_uniform, kl_ours)} as far from the original as "
            f"this one, by mean KL ({sizes})."
        )
    advice = (
        "at this size the uniform model is the better choice"
        if ours.stored_bpw >= uniform.stored_bpw
        else "the uniform model is larger, and closer to the original"
    )
    return (
        f"This model is {_times(kl_ours, kl_uniform)} as far from the original as the uniform "
        f"one, by mean KL ({sizes}): {advice}."
    )


def choice(variants: Sequence[SizeVariant]) -> str:
    """The sizes to recommend, if the figures allow it; else empty.

    Args:
        variants: Models of one original.
    """
    measured = [
        (variant, _band(variant.mean_kl_nats, variant.top1_agreement))
        for variant in variants
        if math.isfinite(variant.mean_kl_nats) and math.isfinite(variant.top1_agreement)
    ]
    for words in _GOOD_BANDS:
        if found := [variant for variant, band in measured if band == words]:
            smallest = min(found, key=lambda variant: variant.num_bytes)
            return f"{escape(smallest.name)} is the smallest of these that is {words}."
    return ""


def prediction(facts: ModelFacts) -> str:
    """Predicted and measured KL, and the bound on the distance to the best plan."""
    plan, measured = facts.plan, facts.rows[-1].quality
    kl_nats = with_error(measured.mean_kl_nats, measured.mean_kl_se_nats, digits=3)
    predicted = significant(plan.predicted_kl_nats, 3)
    effort = EFFORTS[facts.effort]
    is_fitted = effort.num_reconstruction_epochs and facts.encoder == "gptq"
    text = f"Mean KL in nats: {predicted} predicted from the costs of the layers"
    text += ", before blocks are fitted" * bool(is_fitted) + f"; {kl_nats} measured."
    if predicted == DASH:
        return text
    bound = plan.lower_bound_nats
    if math.isfinite(bound) and plan.predicted_kl_nats > 0:
        gap = max(plan.predicted_kl_nats - bound, 0.0) / plan.predicted_kl_nats
        text += f" No plan of this size is predicted to lose less than {significant(bound, 3)} nats"
        text += f" ({percent(gap, decimals=2)} below this one)."
    return text


def fitting_macs(memory_bytes: int) -> str:
    """The smallest Mac whose GPU may hold the model by default, in words."""
    memory_gib = smallest_mac_gib(memory_bytes)
    if memory_gib is not None:
        return f"Macs with {memory_gib} GB of memory or more"
    return f"no single Mac: more than the GPU of one with {MAC_MEMORY_GIB[-1]} GB may use"


def smallest_mac_gib(memory_bytes: int) -> int | None:
    """Memory of the smallest Mac whose GPU may hold the model by default; None if none may."""
    fitting = (gib for gib in MAC_MEMORY_GIB if memory_bytes <= gpu_bytes(gib * 2**30))
    return next(fitting, None)


def gpu_bytes(memory_bytes: float) -> float:
    """Memory that a Mac's GPU may use by default, of `memory_bytes` in all."""
    return memory_bytes * gpu_share(memory_bytes / 2**30)


def gpu_share(memory_gib: float) -> float:
    """Share of a Mac's memory that its GPU may use by default."""
    return LARGE_MAC_GPU_SHARE if memory_gib >= LARGE_MAC_GIB else SMALL_MAC_GPU_SHARE


def _times(larger: float, smaller: float) -> str:
    return f"{significant(larger / smaller, 3)} times" if smaller > 0 else "infinitely many times"


def _band(kl_nats: float, top1: float) -> str:
    for max_kl_nats, min_top1, words in _BANDS:
        if kl_nats <= max_kl_nats and top1 >= min_top1:
            return words
    return _BEYOND_BANDS


def _indistinguishable(ours: Quality, uniform: Quality) -> bool:
    difference = abs(ours.mean_kl_nats - uniform.mean_kl_nats)
    error = math.hypot(ours.mean_kl_se_nats, uniform.mean_kl_se_nats)
    if not math.isfinite(error):  # a single window has no standard error
        return difference == 0
    return difference <= SIGNIFICANT_STANDARD_ERRORS * error
