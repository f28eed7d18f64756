"""Facts of a made-up model, for tests of the card and its picture."""

from __future__ import annotations

import math
from typing import Any

from dynquant.quant.cache_bits import CacheLoss
from dynquant.quant.formats import DEFAULT_MENU, UNQUANTIZED, QuantFormat
from dynquant.quant.plan import LayerProfile, QuantPlan
from dynquant.quant.quality import Quality
from dynquant.quant.speed import MeasuredSpeed, TokenReads
from dynquant.report.facts import ModelFacts, QuantizedRow, SizeVariant, TextFacts

HIDDEN, WIDE, VOCABULARY = 1024, 3072, 151936
ROLES = {
    "self_attn.q_proj": (2048, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, 2048),
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}


def make_layer(path: str, shape: tuple[int, ...] = (64, 128), **overrides: Any) -> LayerProfile:
    costs = tuple(
        0.0 if fmt == UNQUANTIZED else 4.0**-fmt.bits * fmt.group_size**0.5 / 50
        for fmt in DEFAULT_MENU
    )
    values = {"dtype_bits": 16, "formats": DEFAULT_MENU, "costs_nats": costs, **overrides}
    return LayerProfile(path=path, shape=shape, **values)


def make_layers(num_blocks: int = 28) -> tuple[LayerProfile, ...]:
    blocks = (
        make_layer(f"model.layers.{block}.{role}", shape)
        for block in range(num_blocks)
        for role, shape in ROLES.items()
    )
    return (make_layer("model.embed_tokens", (VOCABULARY, HIDDEN)), *blocks)


def varied_format(position: int, path: str) -> QuantFormat:
    """A plausible choice: the first blocks, `v_proj` and `down_proj` get more bits."""
    names = ["3g64", "3g32", "4g128", "4g64", "4g32", "5g64", "6g64", "8g64"]
    level = position * 7 % 3 + (2 if path.endswith(("v_proj", "down_proj")) else 1)
    if ".0." in path or "embed" in path:
        level += 3
    return QuantFormat.from_name(names[min(level, len(names) - 1)])


def make_plan(layers: tuple[LayerProfile, ...], **overrides: Any) -> QuantPlan:
    values: dict[str, Any] = {
        "formats": {layer.path: varied_format(i, layer.path) for i, layer in enumerate(layers)},
        "target_bpw": 4.5,
        "stored_bpw": 4.4973,
        "predicted_kl_nats": 0.00612,
        "lower_bound_nats": 0.00611,
    }
    return QuantPlan(**values | overrides)


def make_quality(**overrides: Any) -> Quality:
    values: dict[str, Any] = {
        "perplexity": 14.2371,
        "perplexity_se": 0.3124,
        "mean_kl_nats": 0.00653,
        "mean_kl_se_nats": 0.00021,
        "median_kl_nats": 0.0031,
        "p99_kl_nats": 0.0712,
        "p999_kl_nats": 0.3011,
        "top1_agreement": 0.9432,
        "num_tokens": 32704,
        "num_windows": 64,
    }
    return Quality(**values | overrides)


def make_row(label: str = "This model", **overrides: Any) -> QuantizedRow:
    quality = {k: overrides.pop(k) for k in list(overrides) if k in Quality.__slots__}
    values: dict[str, Any] = {"stored_bpw": 4.4973, "num_bytes": 335_544_320}
    return QuantizedRow(label=label, quality=make_quality(**quality), **values | overrides)


def make_original(**overrides: Any) -> QuantizedRow:
    identical = {
        "perplexity": 14.1502,
        "mean_kl_nats": 0.0,
        "mean_kl_se_nats": 0.0,
        "median_kl_nats": 0.0,
        "p99_kl_nats": 0.0,
        "p999_kl_nats": 0.0,
        "top1_agreement": 1.0,
        "stored_bpw": 16.0,
        "num_bytes": 1_192_099_840,
    }
    return make_row("Original (bfloat16)", **identical | overrides)


def make_uniform(**overrides: Any) -> QuantizedRow:
    values = {
        "stored_bpw": 4.501,
        "num_bytes": 335_822_080,
        "perplexity": 15.0221,
        "mean_kl_nats": 0.01381,
        "mean_kl_se_nats": 0.00048,
        "p99_kl_nats": 0.1544,
        "top1_agreement": 0.9117,
    }
    return make_row("Uniform 4-bit, group 64", **values | overrides)


def make_text(name: str, digit: str) -> TextFacts:
    return TextFacts(name=name, sha256=digit * 64, num_tokens=32768, window_tokens=512)


def make_variant(target_bpw: float, mean_kl_nats: float, **overrides: Any) -> SizeVariant:
    values: dict[str, Any] = {
        "name": f"Qwen3-0.6B-MLX-{target_bpw}bpw",
        "stored_bpw": target_bpw - 0.0027,
        "num_bytes": round(target_bpw * 74_565_400),
        "mean_kl_se_nats": mean_kl_nats / 30,
        "top1_agreement": 1 - 0.7 * mean_kl_nats**0.5,
    }
    return SizeVariant(target_bpw=target_bpw, mean_kl_nats=mean_kl_nats, **values | overrides)


def make_variants() -> tuple[SizeVariant, ...]:
    """Four sizes; the second is the model that `make_facts` is about."""
    return (
        make_variant(3.5, 0.0314),
        make_variant(4.5, 0.00653, mean_kl_se_nats=0.00021, top1_agreement=0.9432),
        make_variant(6.0, 0.00091),
        make_variant(8.0, 0.00012),
    )


def make_cache_loss(bits: int, mean_kl_nats: float, **overrides: Any) -> CacheLoss:
    values: dict[str, Any] = {
        "group_size": 64,
        "mean_kl_se_nats": mean_kl_nats / 20,
        "num_tokens": 1984,
    }
    return CacheLoss(bits=bits, mean_kl_nats=mean_kl_nats, **values | overrides)


def make_facts(num_blocks: int = 28, **overrides: Any) -> ModelFacts:
    layers = overrides.pop("layers", None) or make_layers(num_blocks)
    values: dict[str, Any] = {
        "name": "Qwen3-0.6B-MLX-4.5bpw",
        "source": "Qwen/Qwen3-0.6B",
        "source_is_repo": True,
        "revision_sha": "c1899de289a04d12100db370d81485cdf75e47ca",
        "model_type": "qwen3",
        "license_fields": {"license": "apache-2.0"},
        "layers": layers,
        "plan": make_plan(layers),
        "method": "fisher",
        "encoder": "gptq",
        "num_parameters": 596_049_920,
        "rows": (make_original(), make_uniform(), make_row()),
        "memory_bytes": 812_000_000,
        "context_tokens": 4096,
        "calibration": make_text("dynquant-calibration-v1", "a"),
        "evaluation": make_text("Salesforce/wikitext:wikitext-2-raw-v1:test:text", "b"),
        "seed": 0,
        "command": "dynquant quantize Qwen/Qwen3-0.6B --bpw 4.5 --revision c1899de",
        "versions": {"mlx": "0.32.4", "mlx-lm": "0.32.2", "dynquant": "0.1.0"},
        "notes": ("The embedding is tied to the head: its cost counts both roles.",),
        "reads": TokenReads(weight_bytes=335_000_000, cache_bytes=470_000_000, num_blocks=28),
        "speed": MeasuredSpeed(
            machine="Apple M4 Pro, GPU",
            prompt_tokens=512,
            prompt_tokens_per_sec=5211.3,
            generated_tokens=64,
            generated_tokens_per_sec=331.7,
        ),
        "cache_losses": (make_cache_loss(8, 0.00012), make_cache_loss(4, 0.0081)),
    }
    return ModelFacts(**values | overrides)


NAN = math.nan
