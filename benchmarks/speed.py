"""Predicted beside measured tokens per second, on this machine.

    python -m benchmarks.speed [--width 1024] [--blocks 8] [--tokens 32]

Times the products of the formats in use, predicts models of random weights from them, and has
stock mlx-lm generate with the same models: uniform 4 bits, a mixture of formats, and experts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from itertools import islice, pairwise
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models import llama, qwen3_moe

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX
from dynquant.quant.formats import QuantFormat
from dynquant.quant.kernel_times import KernelTimes
from dynquant.quant.mlx.generation_speed import machine_name
from dynquant.quant.mlx.kernel_timing import measure_kernels
from dynquant.quant.plan import LayerProfile

MIXED = ("3g64", "4g64", "6g64", "4g64", "8g64", "4g32", "5g64")
NUM_EXPERTS, NUM_CHOSEN = 8, 2
VOCAB = 8192


def dense(width: int, blocks: int) -> Any:
    return llama.Model(
        llama.ModelArgs(
            model_type="llama",
            hidden_size=width,
            num_hidden_layers=blocks,
            intermediate_size=3 * width,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 128,
            rms_norm_eps=1e-5,
            vocab_size=VOCAB,
            tie_word_embeddings=False,
        )
    )


def experts(width: int, blocks: int) -> Any:
    return qwen3_moe.Model(
        qwen3_moe.ModelArgs(
            model_type="qwen3_moe",
            hidden_size=width,
            num_hidden_layers=blocks,
            intermediate_size=width,
            num_attention_heads=width // 64,
            num_key_value_heads=width // 128,
            head_dim=64,
            num_experts=NUM_EXPERTS,
            num_experts_per_tok=NUM_CHOSEN,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            moe_intermediate_size=width,
            rms_norm_eps=1e-5,
            vocab_size=VOCAB,
            rope_theta=10000.0,
            tie_word_embeddings=False,
            max_position_embeddings=4096,
            norm_topk_prob=True,
        )
    )


def quantized(model: Any, names: tuple[str, ...]) -> dict[str, QuantFormat]:
    """Store the layers in turn as `names`; path → format."""
    model.set_dtype(mx.bfloat16)
    leaves = tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)
    paths = [path for path, leaf in leaves if hasattr(leaf, "to_quantized")]
    formats = {
        path: QuantFormat.from_name(names[place % len(names)]) for place, path in enumerate(paths)
    }
    shapes = {path: dict(leaves)[path].weight.shape for path in paths}

    def how(path: str, _module: nn.Module) -> Any:
        if path not in formats:
            return False
        return {"bits": formats[path].bits, "group_size": formats[path].group_size}

    nn.quantize(model, class_predicate=how)
    mx.eval(model.parameters())
    model.shapes_before = shapes
    return formats


def layers_of(shapes: Mapping[str, tuple[int, ...]], formats: Mapping[str, QuantFormat]) -> Any:
    return [
        LayerProfile(path=path, shape=tuple(shape), dtype_bits=16, formats=(formats[path],))
        for path, shape in shapes.items()
    ]


def shares_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, float]:
    """As `quant.mlx.reads` finds them: these models are made here."""
    return {
        path: 0.0 if "embed" in path else NUM_CHOSEN / NUM_EXPERTS if len(shape) > 2 else 1.0
        for path, shape in shapes.items()
    }


def measured(model: Any, num_tokens: int) -> float:
    steps = generate_step(mx.array([1, 2, 3]), model, max_tokens=num_tokens)
    stamps = [time.perf_counter() for _ in islice(steps, num_tokens)]
    return 1 / median(b - a for a, b in pairwise(stamps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    asked = parser.parse_args()
    formats = [QuantFormat.from_name(name) for name in sorted({*MIXED, "8g64"})]
    times: KernelTimes = measure_kernels(formats, batches=(1,))
    print(f"{machine_name()}: {times.secs_per_block * 1e6:.0f} µs a block beside products")
    print(f"{'model':<24}{'predicted':>12}{'measured':>12}{'ratio':>8}")
    for name, make, kinds in (
        ("uniform 4 bits", dense, ("4g64",)),
        ("mixed formats", dense, MIXED),
        ("experts, 4 bits", experts, ("4g64",)),
        ("experts, mixed", experts, MIXED),
    ):
        model = make(asked.width, asked.blocks)
        chosen = quantized(model, kinds)
        shapes = model.shapes_before
        predicted = times.tokens_per_sec(
            layers_of(shapes, chosen), chosen, shares_of(shapes), num_blocks=asked.blocks
        )
        rate = measured(model, asked.tokens)
        print(f"{name:<24}{predicted:>12.2f}{rate:>12.2f}{predicted / rate:>8.2f}", flush=True)
        del model


if __name__ == "__main__":
    main()
