"""Make a small model that sees images: a trained language model with a tower of random weights.

    python examples/vision_model.py examples/sample-2m FOLDER

It has the layout of Qwen3-VL on the Hub, so it is converted like one. Its text is as good as the
language model; its answers about images mean nothing, since the tower was never trained.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX

# isort: split
import mlx.core as mx
import numpy as np
from tokenizers import AddedToken, Tokenizer

IMAGE_TOKENS = ("<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>")
PATCH_PIXELS, TEMPORAL_PATCH, MERGE = 16, 2, 2
WIDTH, DEPTH = 64, 2
_SIDE = 8  # positions of the tower in each direction
_TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}\n{% endfor %}"
)


def make_vision_model(source: Path, folder: Path, *, seed: int = 0) -> None:
    """Write the model into `folder`.

    Args:
        source: Folder of a Qwen3 model.
        folder: Where to write; is made.
        seed: Of the tower's random weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    first = int(config["vocab_size"])
    unnamed = range(tokenizer.get_vocab_size(), first)  # ids that have no token yet
    tokenizer.add_special_tokens([AddedToken(f"<|{token}|>") for token in unnamed])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in IMAGE_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    own = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    _write(folder / "tokenizer_config.json", own | {"chat_template": _TEMPLATE})
    _write(folder / "config.json", _config(config, first))
    _write(folder / "preprocessor_config.json", _processor())
    weights = _language(source, seed) | _tower(config["hidden_size"], seed)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "pt"})


def _config(text: Mapping[str, Any], first: int) -> dict[str, Any]:
    start, image, end, video = range(first, first + len(IMAGE_TOKENS))
    mrope = text["head_dim"] // 2
    sections = [mrope - 2 * (mrope // 3), mrope // 3, mrope // 3]
    own = {"model_type": "qwen3_vl_text", "vocab_size": first + len(IMAGE_TOKENS)}
    rope = {"rope_type": "default", "mrope_section": sections, "mrope_interleaved": True}
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "torch_dtype": "bfloat16",
        "eos_token_id": text.get("eos_token_id"),
        "tie_word_embeddings": text["tie_word_embeddings"],
        "image_token_id": image,
        "video_token_id": video,
        "vision_start_token_id": start,
        "vision_end_token_id": end,
        "text_config": {**text, **own, "rope_scaling": rope},
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": DEPTH,
            "hidden_size": WIDTH,
            "intermediate_size": 2 * WIDTH,
            "num_heads": 2,
            "out_hidden_size": text["hidden_size"],
            "patch_size": PATCH_PIXELS,
            "temporal_patch_size": TEMPORAL_PATCH,
            "spatial_merge_size": MERGE,
            "num_position_embeddings": _SIDE**2,
            "deepstack_visual_indexes": [0],
        },
    }


def _processor() -> dict[str, Any]:
    tile = (PATCH_PIXELS * MERGE) ** 2
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": PATCH_PIXELS,
        "temporal_patch_size": TEMPORAL_PATCH,
        "merge_size": MERGE,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": 4 * tile, "longest_edge": 16 * tile},
    }


def _language(source: Path, seed: int) -> dict[str, mx.array]:
    found: dict[str, mx.array] = {}
    for file in sorted(source.glob("model*.safetensors")):
        found |= mx.load(str(file))  # type: ignore[arg-type]
    rng = np.random.default_rng(seed + 1)
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & found.keys():
        scale = float(np.std(np.asarray(found[name].astype(mx.float32))))
        more = _random(rng, (len(IMAGE_TOKENS), found[name].shape[1]), scale)
        found[name] = mx.concatenate([found[name], more])
    return {name.replace("model.", "model.language_model.", 1): a for name, a in found.items()}


def _tower(language_width: int, seed: int) -> dict[str, mx.array]:
    rng, merged = np.random.default_rng(seed), WIDTH * MERGE**2
    patch = (3, TEMPORAL_PATCH, PATCH_PIXELS, PATCH_PIXELS)
    shapes: dict[str, tuple[int, ...]] = {"patch_embed.proj": (WIDTH, *patch)}
    norms: dict[str, int] = {}
    for block in range(DEPTH):
        at = f"blocks.{block}"
        shapes |= {
            f"{at}.attn.qkv": (3 * WIDTH, WIDTH),
            f"{at}.attn.proj": (WIDTH, WIDTH),
            f"{at}.mlp.linear_fc1": (2 * WIDTH, WIDTH),
            f"{at}.mlp.linear_fc2": (WIDTH, 2 * WIDTH),
        }
        norms |= {f"{at}.norm1": WIDTH, f"{at}.norm2": WIDTH}
    for at, width in (("merger", WIDTH), ("deepstack_merger_list.0", merged)):
        norms[f"{at}.norm"] = width
        shapes[f"{at}.linear_fc1"] = (merged, merged)
        shapes[f"{at}.linear_fc2"] = (language_width, merged)
    weights = {"pos_embed.weight": _random(rng, (_SIDE**2, WIDTH), 0.02)}
    for name, shape in shapes.items():
        fan_in = int(np.prod(shape[1:]))
        weights[f"{name}.weight"] = _random(rng, shape, fan_in**-0.5)
        weights[f"{name}.bias"] = mx.zeros(shape[0], mx.bfloat16)
    for name, width in norms.items():
        weights[f"{name}.weight"] = mx.ones(width, mx.bfloat16)
        weights[f"{name}.bias"] = mx.zeros(width, mx.bfloat16)
    return {f"model.visual.{name}": array for name, array in weights.items()}


def _random(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> mx.array:
    return mx.array(scale * rng.standard_normal(shape)).astype(mx.bfloat16)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    make_vision_model(Path(sys.argv[1]), Path(sys.argv[2]))
