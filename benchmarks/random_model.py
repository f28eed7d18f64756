"""Random Qwen3 models of any size, and time and memory of converting them, step by step."""

from __future__ import annotations

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX

# isort: split

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from dynquant.quant.allocate import allocate
from dynquant.quant.formats import DEFAULT_MENU
from dynquant.quant.mlx.calibration import Windows
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.plan import TextFacts
from dynquant.quant.recipe import EFFORTS
from dynquant.texts.overlap import Sketch

__all__ = ["Shape", "convert", "make_model", "num_bytes", "random_windows"]

HEAD_DIM = 64
SPREAD = 0.02  # of the weights, as models are initialized


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a Qwen3 with random weights: grouped queries, a tied embedding."""

    width: int
    depth: int
    inner: float = 3.0  # width of the feed-forward part, over `width`
    vocab: int = 2048
    context: int = 512

    @property
    def config(self) -> dict[str, Any]:
        """Its `config.json`."""
        return {
            "model_type": "qwen3",
            "hidden_size": self.width,
            "num_hidden_layers": self.depth,
            "intermediate_size": self.inner_width,
            "num_attention_heads": self.width // HEAD_DIM,
            "num_key_value_heads": max(1, self.width // HEAD_DIM // 4),
            "head_dim": HEAD_DIM,
            "rms_norm_eps": 1e-6,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
        }

    @property
    def inner_width(self) -> int:
        """Width of the feed-forward part."""
        return round(self.inner * self.width)

    def block(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of the weights of a block."""
        width, inner = self.width, self.inner_width
        keys = max(1, width // HEAD_DIM // 4) * HEAD_DIM
        return {
            "self_attn.q_proj": (width, width),
            "self_attn.k_proj": (keys, width),
            "self_attn.v_proj": (keys, width),
            "self_attn.o_proj": (width, width),
            "self_attn.q_norm": (HEAD_DIM,),
            "self_attn.k_norm": (HEAD_DIM,),
            "mlp.gate_proj": (inner, width),
            "mlp.up_proj": (inner, width),
            "mlp.down_proj": (width, inner),
            "input_layernorm": (width,),
            "post_attention_layernorm": (width,),
        }


def make_model(folder: Path, shape: Shape) -> None:
    """Write the model in bfloat16, a shard for each block, never more than one in memory."""
    names = ["embed_tokens.weight", "norm.weight"]
    shapes: list[tuple[int, ...]] = [(shape.vocab, shape.width), (shape.width,)]
    shards = [dict(zip(names, shapes, strict=True))]
    for index in range(shape.depth):
        block = shape.block().items()
        shards.append({f"layers.{index}.{name}.weight": size for name, size in block})
    for number, shard in enumerate(shards, start=1):
        arrays = {f"model.{name}": _random(size, number) for name, size in shard.items()}
        file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        mx.save_safetensors(str(file), arrays, metadata={"format": "mlx"})
        mx.clear_cache()
    (folder / "config.json").write_text(json.dumps(shape.config))


def num_bytes(folder: Path) -> int:
    """Size of the weights."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@dataclass
class Steps:
    """Seconds and peak memory of each step.

    Attributes:
        mlx_peak_bytes: Peak of MLX's allocator.
    """

    secs: dict[str, float] = field(default_factory=dict)
    mlx_peak_bytes: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def taken(self, step: str) -> Iterator[None]:
        """Note time and memory of the context, and print them."""
        mx.reset_peak_memory()
        started = time.perf_counter()
        yield
        self.secs[step] = time.perf_counter() - started
        self.mlx_peak_bytes[step] = mx.get_peak_memory()
        sys.stderr.write(
            f"{step}: {self.secs[step]:.1f} s, {self.mlx_peak_bytes[step] / 1e9:.2f} GB\n"
        )
        mx.clear_cache()


def convert(
    folder: Path,
    out: Path,
    *,
    num_windows: int,
    target_bpw: float,
    encoder: str,
    effort: str = "normal",
) -> dict[str, Any]:
    """Measure, allocate, encode and evaluate on random tokens, in this process.

    Args:
        folder: The model.
        out: An empty folder for the result.
        num_windows: Windows to calibrate on; some of them are for the probes.
        target_bpw: Stored bits per weight.
        encoder: Name of the encoder.
        effort: A key of `EFFORTS`.
    """
    quantizer, steps = MlxQuantizer(folder, name="random"), Steps()
    config = json.loads((folder / "config.json").read_text())
    windows = random_windows(
        num_windows, min(512, config["max_position_embeddings"]), config, seed=0
    )
    held_out = random_windows(4, windows.facts.window_tokens, config, seed=1)

    def ignore(_step: str, _amount: int = 1) -> None:
        pass

    with steps.taken("measure"):
        table = quantizer.measure(
            windows,
            menu=DEFAULT_MENU,
            encoder=encoder,
            effort=EFFORTS[effort],
            seed=0,
            on_step=ignore,
        )
    with steps.taken("allocate"):
        plan = allocate(table.inventory, target_bpw=target_bpw)
    with steps.taken("encode"):
        quantizer.encode(
            {out: plan},
            windows,
            encoder=encoder,
            effort=EFFORTS[effort],
            importance=table.importance,
            on_step=ignore,
        )
    with steps.taken("evaluate"):
        _, found = quantizer.evaluate({"ours": out}, {}, held_out, on_step=ignore)
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        **asdict(steps),
        "resident_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
        "num_parameters": table.inventory.num_parameters,
        "calibration_tokens": windows.facts.num_tokens,
        "device": str(mx.default_device().type).rpartition(".")[2],
        "stored_bpw": plan.stored_bpw,
        "mean_kl_nats": found["ours"].mean_kl_nats,
    }


def _random(shape: tuple[int, ...], seed: int) -> mx.array:
    if len(shape) == 1:
        return mx.ones(shape, mx.bfloat16)
    rows = max(1, (1 << 24) // shape[-1])  # at a time, so that float32 does not double the peak
    parts = []
    for start in range(0, shape[0], rows):
        key = mx.random.key(seed * 65_537 + shape[-1] + start)
        part = SPREAD * mx.random.normal((min(rows, shape[0] - start), shape[-1]), key=key)
        parts.append(part.astype(mx.bfloat16))
        mx.eval(parts[-1])
    return mx.concatenate(parts)


def random_windows(count: int, length: int, config: dict[str, Any], *, seed: int) -> Windows:
    tokens = np.random.default_rng(seed).integers(0, config["vocab_size"], (count, length))
    return Windows(
        tokens=tokens.astype(np.int32),
        more=np.zeros((0, length), np.int32),
        sketch=Sketch(np.zeros(0, dtype=np.uint64)),
        facts=TextFacts(
            name="random", sha256="", num_tokens=int(tokens.size), window_tokens=length
        ),
    )
