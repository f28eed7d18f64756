"""Quantize as llama.cpp does, and write the decoded weights as a model that MLX loads.

    python benchmarks/gguf_peer.py MODEL TOKENS.npy OUT --preset Q4_K_M
    python benchmarks/gguf_peer.py MODEL TOKENS.npy OUT --bpw 3,4.5

TOKENS are (windows, seq), int32. `--preset` has llama.cpp choose the type of each tensor (by
`llama_model_quantize` of cyllama); the choice is kept beside TOKENS. `--bpw` finds the mixture of
types that costs least at each size: the cost of a type in a matrix is its weighted squared error,
in units of what this matrix alone in Q3_K adds to the KL divergence on calibration windows.

Either way ggml's own `ggml_quantize_chunk` (libggml-python) encodes each matrix with an importance
matrix, the mean square of each input column, and `gguf.dequantize` decodes it. `gguf.json` in OUT
lists the type and the bytes of each tensor. Models without experts only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import libggml
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader, GGUFWriter, LlamaFileType, dequantize, get_tensor_name_map
from gguf.constants import GGML_QUANT_SIZES, MODEL_ARCH
from mlx.utils import tree_flatten, tree_map
from mlx_lm.utils import load_model

LIBRARY = ctypes.CDLL(str(Path(libggml.__file__).parent / "lib64" / "libggml-base.so"))
LIBRARY.ggml_quantize_chunk.restype = ctypes.c_size_t
TYPES = tuple(
    getattr(Type, name)
    for name in (
        *("IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "Q3_K", "IQ3_S", "IQ4_XS", "IQ4_NL", "Q4_0"),
        *("Q4_K", "Q5_0", "Q5_K", "Q6_K", "Q8_0"),
    )
)
ROWS, PROBE_ROWS = 4, 16  # windows of a batch, and of a probe


@dataclass(frozen=True)
class Stored:
    """A tensor after encoding: its type, its bytes, and its weights again."""

    type: Type
    num_bytes: int
    weights: np.ndarray


@dataclass(frozen=True)
class Cost:
    """Of a type in a matrix: its bytes, and about what it adds to the mean KL divergence."""

    num_bytes: int
    nats: float


class Source:
    """A model, its matrices and what goes into them."""

    def __init__(self, folder: Path, tokens: np.ndarray) -> None:
        self.folder, self.tokens = folder, tokens
        self.model, self.config = load_model(folder, lazy=True)
        self.model.update(tree_map(lambda p: p.astype(mx.float32), self.model.parameters()))
        self.tensors = {name: np.array(a) for name, a in tree_flatten(self.model.parameters())}
        self.matrices = [name for name, array in self.tensors.items() if array.ndim == 2]

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        """Name of a matrix → mean square of each input column."""
        sums: dict[str, mx.array] = {}
        watched = {
            f"{path}.weight": module
            for path, module in self.model.named_modules()
            if f"{path}.weight" in self.matrices
        }
        for name, module in watched.items():
            call = "as_linear" if isinstance(module, nn.Embedding) else "__call__"
            module.__class__ = _watching(type(module), call, name, sums)
        for first in range(0, len(self.tokens), ROWS):
            mx.eval(self.model(mx.array(self.tokens[first : first + ROWS])), *sums.values())
        for module in watched.values():
            module.__class__ = type(module).__mro__[1]
        return {name: np.array(total) / self.tokens.size for name, total in sums.items()}

    def encoded(self, wanted: Sequence[tuple[str, Type]]) -> list[Stored]:
        """Tensors in a type each; ggml computes without Python's lock."""
        assert self.columns
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda each: self._encoded(*each), wanted))

    def _encoded(self, name: str, kind: Type) -> Stored:
        array = np.ascontiguousarray(self.tensors[name], dtype=np.float32)
        if kind == Type.F32:
            return Stored(kind, array.nbytes, array)
        if kind in (Type.F16, Type.BF16):
            return Stored(kind, array.nbytes // 2, array)
        num_rows, num_columns = array.shape
        block, num_bytes = GGML_QUANT_SIZES[kind]
        codes = np.zeros(num_rows * num_columns // block * num_bytes, dtype=np.uint8)
        weights = self.columns.get(name)
        LIBRARY.ggml_quantize_chunk(
            ctypes.c_int(kind),
            array.ctypes.data_as(ctypes.c_void_p),
            codes.ctypes.data_as(ctypes.c_void_p),
            *map(ctypes.c_int64, (0, num_rows, num_columns)),
            None
            if weights is None
            else np.ascontiguousarray(weights, dtype=np.float32).ctypes.data_as(ctypes.c_void_p),
        )
        found = dequantize(codes.reshape(num_rows, -1), kind).reshape(array.shape)
        return Stored(kind, codes.nbytes, found)

    def kl_nats(self, changed: Mapping[str, np.ndarray]) -> float:
        """Mean KL of the model with `changed` weights on the probe's windows."""
        self.model.load_weights([(n, mx.array(a)) for n, a in changed.items()], strict=False)
        apart = []
        for first in range(0, PROBE_ROWS, ROWS):
            log_q = self._log_probs(first)
            log_p = self._original[first // ROWS]
            apart.append((mx.exp(log_p) * (log_p - log_q)).sum(-1).mean().item())
        back = [(name, mx.array(self.tensors[name])) for name in changed]
        self.model.load_weights(back, strict=False)
        return float(np.mean(apart))

    @cached_property
    def _original(self) -> list[mx.array]:
        found = [self._log_probs(first) for first in range(0, PROBE_ROWS, ROWS)]
        mx.eval(found)
        return found

    def _log_probs(self, first: int) -> mx.array:
        logits = self.model(mx.array(self.tokens[first : first + ROWS]))
        return nn.log_softmax(logits.astype(mx.float32))


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("out", type=Path)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--preset")
    wanted.add_argument("--bpw")
    options = parser.parse_args()
    source = Source(options.model, np.load(options.tokens))
    if options.preset:
        kept = options.tokens.with_name(f"gguf-{options.preset}.json")
        if not kept.exists():
            types = preset_types(source, options.preset)
            kept.write_text(json.dumps({name: kind.name for name, kind in types.items()}))
        chosen = {name: Type[kind] for name, kind in json.loads(kept.read_text()).items()}
        write(source, chosen, options.out)
        return
    costs = measured_costs(source)
    for bpw in options.bpw.split(","):
        write(source, mixture(source, costs, float(bpw)), options.out / f"mixture-{bpw}bpw")


def preset_types(source: Source, preset: str) -> dict[str, Type]:
    """The type that llama.cpp gives each tensor, from a file that it quantizes."""
    from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch:
        original, made = (str(Path(scratch) / name) for name in ("original.gguf", "made.gguf"))
        names = write_gguf(source, original)
        params = LlamaModelQuantizeParams()
        params.ftype = int(LlamaFileType[f"MOSTLY_{preset}"])
        model_quantize(original, made, params)
        types = {tensor.name: Type(tensor.tensor_type) for tensor in GGUFReader(made).tensors}
    return {name: types[gguf] for name, gguf in names.items()}


def write_gguf(source: Source, path: str) -> dict[str, str]:
    """A file of the original in float32, without a tokenizer; its names of our tensors."""
    config = source.config
    arch, num_blocks = config["model_type"], config["num_hidden_layers"]
    architecture = next(key for key, name in _ARCHITECTURES.items() if name == arch)
    mapped = get_tensor_name_map(architecture, num_blocks)
    writer = GGUFWriter(path, arch)
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_block_count(num_blocks)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    names = {}
    for name, array in source.tensors.items():
        stem, _, suffix = name.rpartition(".")
        names[name] = f"{mapped.get_name(stem)}.{suffix}"
        writer.add_tensor(names[name], array.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return names


_ARCHITECTURES = {MODEL_ARCH.LLAMA: "llama", MODEL_ARCH.QWEN3: "qwen3"}


def measured_costs(source: Source) -> dict[tuple[str, Type], Cost]:
    """Bytes and cost of each type in each matrix that it divides."""
    found = {}
    for name in source.matrices:
        num_columns = source.tensors[name].shape[1]
        kinds = [kind for kind in TYPES if num_columns % GGML_QUANT_SIZES[kind][0] == 0]
        stored = dict(zip(kinds, source.encoded([(name, kind) for kind in kinds]), strict=True))
        probe = stored[Type.Q3_K]
        unit = source.kl_nats({name: probe.weights}) / _error(source, name, probe)
        for kind, each in stored.items():
            found[name, kind] = Cost(each.num_bytes, unit * _error(source, name, each))
    return found


def mixture(source: Source, costs: Mapping[tuple[str, Type], Cost], bpw: float) -> dict[str, Type]:
    """Types of least cost whose bytes are at most those of `bpw`, by a price per byte."""
    rest = sum(4 * array.size for array in source.tensors.values() if array.ndim != 2)
    room = sum(array.size for array in source.tensors.values()) * bpw / 8 - rest

    def chosen(price: float) -> dict[str, Type]:
        def total(key: tuple[str, Type]) -> float:
            return costs[key].nats + price * costs[key].num_bytes

        return {n: min((k for k in costs if k[0] == n), key=total)[1] for n in source.matrices}

    low, high = 0.0, 1.0
    for _ in range(100):
        price = (low + high) / 2
        fits = _num_bytes(chosen(price), costs) <= room
        low, high = (low, price) if fits else (price, high)
    kinds = chosen(high)
    while swap := _best_swap(kinds, costs, room):  # what the price leaves over
        kinds[swap[0]] = swap[1]
    return kinds


def _best_swap(
    kinds: Mapping[str, Type], costs: Mapping[tuple[str, Type], Cost], room: float
) -> tuple[str, Type] | None:
    """The change of one matrix that lowers the cost most and still fits."""
    left = room - _num_bytes(kinds, costs)
    gains = {
        (name, kind): costs[name, kinds[name]].nats - cost.nats
        for (name, kind), cost in costs.items()
        if cost.num_bytes - costs[name, kinds[name]].num_bytes <= left
    }
    best = max(gains, key=lambda key: gains[key])
    return best if gains[best] > 0 else None


def _num_bytes(kinds: Mapping[str, Type], costs: Mapping[tuple[str, Type], Cost]) -> int:
    return sum(costs[key].num_bytes for key in kinds.items())


def write(source: Source, kinds: Mapping[str, Type], out: Path) -> None:
    """A folder that MLX loads in float32, and what ggml would have stored."""
    chosen = [(name, kinds.get(name, Type.F32)) for name in source.tensors]
    stored = dict(zip(source.tensors, source.encoded(chosen), strict=True))
    out.mkdir(parents=True)
    for file in source.folder.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            shutil.copy(file, out)
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"torch_dtype": "float32"}))
    weights = {name: mx.array(each.weights) for name, each in stored.items()}
    mx.save_safetensors(str(out / "model.safetensors"), weights, {"format": "mlx"})
    listed = {n: {"type": each.type.name, "bytes": each.num_bytes} for n, each in stored.items()}
    (out / "gguf.json").write_text(json.dumps(listed, indent=1))


def _watching(kind: type, call: str, name: str, sums: dict[str, mx.array]) -> type:
    usual: Callable[..., Any] = getattr(kind, call)

    def watched(self: Any, x: mx.array) -> Any:
        squares = mx.square(x.astype(mx.float32)).reshape(-1, x.shape[-1]).sum(0)
        sums[name] = sums[name] + squares if name in sums else squares
        return usual(self, x)

    return type(kind.__name__, (kind,), {call: watched})


def _error(source: Source, name: str, found: Stored) -> float:
    """Squared error of a matrix, each column weighted by its mean square input."""
    apart = (source.tensors[name] - found.weights) ** 2
    weights = source.columns.get(name)
    return float((apart if weights is None else apart * weights).sum()) or 1e-30


if __name__ == "__main__":
    main()
