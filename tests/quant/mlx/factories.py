"""Tiny models built in code, whole for reference and as weights for streaming."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, save_config
from mlx_lm.utils import save_model as save_weights

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.arrays import Weights, for_compute
from dynquant.quant.mlx.calibration import Windows
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.parameters import clear_parameters, quantizable
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.sensitivity import Measurement
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights
from dynquant.quant.plan import LayerProfile, QuantPlan, TextFacts
from dynquant.quant.recipe import EFFORTS
from dynquant.texts.overlap import Sketch
from tests.families import cast, config_of, save_tokenizer

SHARED = Path(__file__).parents[4] / "shared"
VOCAB = 128
WIDTH = 128  # of inputs made without a model

_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "qwen3": {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "intermediate_size": 128,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "vocab_size": VOCAB,
    },
    "qwen3_moe": {"vocab_size": VOCAB, "num_hidden_layers": 2, "mlp_only_layers": []},
}


@dataclass(frozen=True)
class TinyModel:
    """One model twice: whole, and as weights for a skeleton that is streamed.

    Attributes:
        plain: The model with its weights in place.
        config: Its `config.json`.
        weights: Parameter path → array.
    """

    plain: nn.Module
    config: dict[str, Any]
    weights: Weights

    def load(self) -> Weights:
        """A fresh set of weights, as a lazy load gives it."""
        return dict(self.weights)

    def blocks(self) -> BlockModel:
        """A fresh skeleton."""
        skeleton = copy.deepcopy(self.plain)
        clear_parameters(skeleton)
        return BlockModel(skeleton)

    def streamed(self, blocks: BlockModel) -> BlockWeights:
        """The weights, for one pass over `blocks`."""
        return BlockWeights(blocks, self.load)

    def with_weights(self, change: Callable[[str, mx.array], mx.array]) -> TinyModel:
        """The same architecture with other weights."""
        weights = {path: change(path, array) for path, array in self.weights.items()}
        plain = copy.deepcopy(self.plain)
        plain.load_weights(list(weights.items()))
        return TinyModel(plain, self.config, weights)

    def noisy(self, size: float, *, seed: int = 0) -> TinyModel:
        """The same model with some noise on every matrix."""
        keys = iter(mx.random.split(mx.random.key(seed), len(self.weights)))

        def change(_path: str, array: mx.array) -> mx.array:
            noise = mx.random.normal(array.shape, key=next(keys))
            return array + size * noise if array.ndim > 1 else array

        return self.with_weights(change)


def build_model(family: str = "qwen3", **overrides: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A random model of `family` in float32, and its config."""
    config = config_of(family) | dict(_CONFIGS.get(family, {})) | overrides
    model_class, args_class = _get_classes(config)
    mx.random.seed(7)
    model: nn.Module = model_class(args_class.from_dict(config))
    model.eval()
    mx.eval(model.parameters())
    return model, config


def make_model(family: str = "qwen3", **overrides: Any) -> TinyModel:
    """A random model of `family` in float32."""
    model, config = build_model(family, **overrides)
    return TinyModel(model, config, dict(tree_flatten(model.parameters())))


def open_tiny(folder: Path) -> TinyModel:
    """A model folder, computed in float32 as on every CPU."""
    opened = open_model(folder)
    weights = for_compute(opened.lazy_weights())
    plain = copy.deepcopy(opened.skeleton)
    plain.load_weights(list(weights.items()), strict=False)
    plain.eval()
    return TinyModel(plain, opened.config, weights)


def save_model(
    folder: Path, family: str = "qwen3", *, dtype: mx.Dtype = mx.bfloat16, **overrides: Any
) -> Path:
    """Write a random model and a tokenizer as a conversion by mlx-lm would."""
    model, config = build_model(family, **overrides)
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(folder, cast(model, dtype))
    save_config(config, folder / "config.json")
    save_tokenizer(folder, config["vocab_size"])
    return folder


def make_batches(
    count: int = 2, *, shape: tuple[int, int] = (2, 24), vocab: int = VOCAB, seed: int = 0
) -> list[mx.array]:
    """Random token batches."""
    rng = np.random.default_rng(seed)
    return [mx.array(rng.integers(0, vocab, shape), dtype=mx.int32) for _ in range(count)]


def make_measurement(
    tiny: TinyModel, batches: Sequence[mx.array] | None = None, **overrides: Any
) -> Measurement:
    """A measurement of every quantizable layer of `tiny`."""
    fields: dict[str, Any] = {
        "blocks": tiny.blocks(),
        "load": tiny.load,
        "batches": make_batches() if batches is None else batches,
        "shapes": {
            path: tuple(tiny.weights[f"{path}.weight"].shape) for path in quantizable(tiny.plain)
        },
        "gptq": False,
        "seed": 0,
    }
    return Measurement(**fields | overrides)


def make_profiles(
    measurement: Measurement, *, formats: str = "2g32,3g32,4g32,8g32,unquantized"
) -> list[LayerProfile]:
    """A profile for each layer, with the formats that fit it."""
    menu = [QuantFormat.from_name(name) for name in formats.split(",")]
    return [
        LayerProfile(
            path=path,
            shape=tuple(shape),
            dtype_bits=32,
            formats=tuple(fmt for fmt in menu if fmt.fits(shape)),
        )
        for path, shape in measurement.shapes.items()
    ]


def make_windows(tokens: np.ndarray, **facts: Any) -> Windows:
    """Windows of some tokens, (windows, seq)."""
    fields: dict[str, Any] = {
        "name": "text.txt",
        "sha256": "00",
        "num_tokens": int(tokens.size),
        "window_tokens": tokens.shape[1],
    }
    return Windows(
        tokens=tokens.astype(np.int32),
        more=np.zeros((0, tokens.shape[1]), np.int32),
        sketch=Sketch(np.zeros(0, dtype=np.uint64)),
        facts=TextFacts(**fields | facts),
    )


def write_min_max(quantizer: MlxQuantizer, plan: QuantPlan, windows: Windows, folder: Path) -> Path:
    """`folder` with the model as `mx.quantize` stores it, in the formats of `plan`."""
    folder.mkdir()
    quantizer.encode(
        {folder: plan},
        windows,
        encoder="minmax",
        effort=EFFORTS["fast"],
        importance={},
        on_step=lambda _step, _amount=1: None,
    )
    return folder


def write_safetensors(
    file: Path, tensors: Mapping[str, Mapping[str, Any]], data: bytes = b""
) -> Path:
    """A safetensors file with this header, which may be wrong."""
    header = json.dumps(tensors).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data)
    return file


def correlated_inputs(num: int = 1000, *, rank: int = 12, seed: int = 0) -> np.ndarray:
    """Inputs that mostly lie in a few directions, (num, in), of uneven sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(num, rank)) @ rng.normal(size=(rank, WIDTH))
    sizes = np.random.default_rng(99).lognormal(0, 0.7, WIDTH)
    return (mixed + 0.3 * rng.normal(size=(num, WIDTH))) * sizes


def covariance_of(inputs: np.ndarray) -> mx.array:
    return mx.array((inputs.T @ inputs).astype(np.float32))
