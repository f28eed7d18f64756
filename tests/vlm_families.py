"""Tiny random models of every vision or audio language family that mlx-vlm can instantiate.

The configurations live in ``vlm_family_configs.json``, which is written as
``family_configs.json`` is (see `tests.families`) with two differences: every ``*_config`` of a
family may be a list of groups and objects, and ``images`` holds the inputs that the processor of a
family makes of a prompt with one image. There ``ids`` are token ids, ``[id, n]`` standing for
``n`` times the id, and ``pixels`` is the shape of ``pixel_values``; every other key is a keyword
argument of the model, an array or the shape of an array of ones.
"""

from __future__ import annotations

import ast
import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_vlm.models
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_vlm.utils import (
    apply_generation_config_defaults,
    get_model_and_args,
    sanitize_weights,
    update_module_configs,
)

from tests.families import _tame, cast, save_tokenizer

_TABLE = json.loads(Path(__file__).with_name("vlm_family_configs.json").read_text("utf-8"))

#: Parts of a configuration, in the order in which `mlx_vlm.utils.load_model` reads them.
_PARTS = ["text", "vision", "perceiver", "projector", "audio"]


def _merge(parts: list[Any]) -> dict[str, Any]:
    """Merge the group names and objects of ``parts``, later ones winning."""
    merged: dict[str, Any] = {}
    for part in parts:
        merged.update(_TABLE["groups"][part] if isinstance(part, str) else part)
    for key, value in merged.items():
        if key.endswith("_config") and isinstance(value, list | dict):
            merged[key] = _merge(value if isinstance(value, list) else [value])
    return copy.deepcopy(merged)


#: Family id -> its whole ``config.json``. Ids are model types, or a model type and a variant.
FAMILIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        family_id: {"model_type": family_id, **_merge(parts)}
        for family_id, parts in _TABLE["families"].items()
    }
)

_DETECTOR = "it detects objects and generates no text"
_DECISION = "it answers with the probabilities of given options and generates no text"
_EMBEDDER = "it returns embeddings and generates no text"
_GEOMETRY = "it estimates depth, poses or shapes and generates no text"
_SEGMENTER = "it segments images and generates no text"

#: Package of ``mlx_vlm.models`` that has images or sound and no family in the table -> why.
EXCLUDED: Mapping[str, str] = MappingProxyType(
    {
        "clef": _DECISION,
        "colidefics3": _EMBEDDER,
        "colqwen2_5": _EMBEDDER,
        "d1": _DECISION,
        "d1_omni": _DECISION,
        "embedding_gemma2": _EMBEDDER,
        "fastvlm": "its vision tower is FastViTHD with 123 million parameters, whatever the "
        "configuration says, and sanitize needs the weights of the tower",
        "gemma3n": "its vision tower is MobileNetV5 with 294 million parameters, whatever the "
        "configuration says, and sanitize needs the weights of the tower",
        "llama_nemotron_vl_embedding": _EMBEDDER,
        "minimax_h3": "it generates video",
        "moge3": _GEOMETRY,
        "muse_spark": "its attention runs as the Metal kernel qk_norm_rope without fallback, so "
        "that there is no forward pass elsewhere",
        "nemotron_voicechat": "it answers with speech, and its encoder comes from mlx-audio, "
        "which is not installed",
        "phi3_v": "its vision tower is CLIP ViT-L with 303 million parameters, whatever the "
        "configuration says",
        "pp_doclayout_v3": _DETECTOR,
        "prism_hadamard_qwen35": "it exists only quantized, as 2-bit Hadamard packs that its "
        "configuration insists on, so that there are no weights to quantize",
        "qwen3_vl_embedding": _EMBEDDER,
        "rfdetr": _DETECTOR,
        "rt_detr_v2": _DETECTOR,
        "sam3": _SEGMENTER,
        "sam3_1": _SEGMENTER,
        "sam3d_body": _GEOMETRY,
        "sam3d_objects": _GEOMETRY,
        "siglip": _EMBEDDER,
        "video_depth_anything": _GEOMETRY,
    }
)

_SAM = (
    "its first vision tower is SAM ViT-B with 90 million parameters, whatever the configuration "
    "says; the family is built without it, and then mlx-vlm ignores images"
)

#: Family id -> why it has no tiny image inputs.
NO_IMAGE: Mapping[str, str] = MappingProxyType(
    {
        "deepseekocr": _SAM,
        "deepseekocr_2": _SAM,
        "mistral_large3": "mlx-vlm computes the image's features, but its language model "
        "(deepseek_v3) ignores inputs_embeds",
        "molmo_point": "the model's __call__ ignores pixel_values: generation calls "
        "get_input_embeddings first",
        "unlimited_ocr": _SAM,
    }
)

#: Family id -> why mlx-vlm itself cannot run it on text alone.
NO_TEXT: Mapping[str, str] = MappingProxyType(
    {
        "hunyuan_vl": "without an image mlx-vlm passes position ids of two dimensions to a rotary "
        "embedding that needs three: [transpose] Received 4 axes for array with 3 dimensions",
    }
)

#: Family id -> children that are left out, as mlx-vlm does when a checkpoint lacks their weights.
_LEFT_OUT: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "deepseekocr": ("sam_model",),
        "deepseekocr_2": ("sam_model", "vision_model"),
        "unlimited_ocr": ("sam_model",),
    }
)

#: Families whose ``sanitize`` changes values on every load, until they are its fixed point.
_FIXED_POINT = ("gemma3",)


def all_model_packages() -> list[str]:
    """Return the packages of ``mlx_vlm.models`` with a configuration or tower for images or sound.

    The sources are read, not imported, since some need packages that are not installed.
    """
    return [
        path.name
        for path in sorted(Path(next(iter(mlx_vlm.models.__path__))).iterdir())
        if (path / "__init__.py").exists() and _has_tower(path)
    ]


def _has_tower(package: Path) -> bool:
    """Return whether a package exports a vision or audio class or has a module for one."""
    names = [path.stem for path in package.glob("*.py") if not path.stem.startswith("processing")]
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            names += [alias.asname or alias.name for alias in node.names]
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return any(name.lower().startswith(("vision", "audio")) for name in names)


def config_of(family_id: str) -> dict[str, Any]:
    """Return a copy of the configuration of a family that the caller may change."""
    return copy.deepcopy(dict(FAMILIES[family_id]))


def package_of(family_id: str) -> str:
    """Return the package of ``mlx_vlm.models`` that implements a family, after remapping."""
    arch, _ = get_model_and_args(config_of(family_id))
    return str(arch.__name__).rpartition(".")[2]


def _skeleton(config: dict[str, Any]) -> tuple[Any, Any, nn.Module]:
    """Return package, configuration and fresh model, as ``mlx_vlm.utils.load_model`` makes them."""
    arch, _ = get_model_and_args(config)
    config.setdefault("text_config", config.pop("llm_config", {}))
    config.setdefault("vision_config", {})
    config.setdefault("audio_config", {})
    model_config = arch.ModelConfig.from_dict(config)
    model_config = update_module_configs(model_config, arch, config, _PARTS)
    model_config = apply_generation_config_defaults(model_config, config)
    return arch, model_config, arch.Model(model_config)


def build(family_id: str, *, seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """Instantiate a family in float32 with weights that depend on ``seed`` only.

    Weights are made as `tests.families.build` makes them. The global random state is left as it
    was.
    """
    random_state: Any = mx.random.state
    state = [int(word) for word in random_state[0].tolist()]
    try:
        mx.random.seed(seed)
        _, _, model = _skeleton(config_of(family_id))
        for name in _LEFT_OUT.get(family_id, ()):
            setattr(model, name, None)
        mx.eval(model.parameters())
    finally:
        mx.random.seed((state[0] << 32) | state[1])
    model.update(
        tree_map_with_path(lambda path, value: _tame(path, value, seed), model.parameters())
    )
    if family_id in _FIXED_POINT:
        weights = sanitized(family_id, dict(tree_flatten(model.parameters())))
        model.load_weights(list(weights.items()))
    mx.eval(model.parameters())
    model.eval()
    return model, config_of(family_id)


def sanitized(family_id: str, weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Return weights as ``mlx_vlm.utils.load_model`` sanitizes those of a checkpoint."""
    arch, model_config, model = _skeleton(config_of(family_id))
    weights = sanitize_weights(model, weights)
    for name, part in (("Vision", "vision"), ("Language", "text"), ("Audio", "audio")):
        if hasattr(arch, f"{name}Model") and hasattr(model_config, f"{part}_config"):
            weights = sanitize_weights(
                getattr(arch, f"{name}Model"), weights, getattr(model_config, f"{part}_config")
            )
    return weights


def _interleaved(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Return weights whose gate and up rows alternate, as Falcon's checkpoints have them."""
    return {
        name: value.reshape(2, -1, *value.shape[1:]).swapaxes(0, 1).reshape(value.shape)
        if ".w13." in name
        else value
        for name, value in weights.items()
    }


#: Family id -> how its weights become those of a checkpoint; the inverse of ``sanitize``.
_TO_CHECKPOINT: Mapping[str, Callable[[dict[str, mx.array]], dict[str, mx.array]]] = (
    MappingProxyType({"falcon_ocr": _interleaved, "falcon_perception": _interleaved})
)


def save(family_id: str, folder: Path, *, dtype: mx.Dtype = mx.bfloat16, seed: int = 0) -> Path:
    """Write a family to ``folder`` as a checkpoint that mlx-vlm loads, with a tokenizer.

    Weights have the names and layouts of the model, which ``sanitize`` takes back unchanged, or
    else the inverse of what ``sanitize`` does.
    """
    model, config = build(family_id, seed=seed)
    cast(model, dtype)
    weights = dict(tree_flatten(model.parameters()))
    weights = _TO_CHECKPOINT.get(family_id, lambda same: same)(weights)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_tokenizer(folder, 512)
    return folder


def text_inputs(family_id: str, input_ids: mx.array) -> dict[str, Any]:
    """Return the keyword arguments of a model for text alone, with logits for every token.

    There is no mask, as in generation: many families would take a mask of ones for an attention
    mask without causality.
    """
    inputs: dict[str, Any] = {"input_ids": input_ids, "pixel_values": None, "mask": None}
    if family_id == "diffusion_gemma":
        inputs["canvas_ids"] = input_ids
    if family_id in ("florence2", "nemotron_parse"):
        inputs["decoder_input_ids"] = input_ids
    if family_id == "nemotron_parse":
        inputs["encoder_outputs"] = _gradient([1, 5, 64], 0)
    return inputs


def image_inputs(family_id: str, *, image: int = 0) -> dict[str, Any] | None:
    """Return the keyword arguments of a model for a prompt with one image, or None (`NO_IMAGE`).

    Args:
        family_id: The family.
        image: Which image; the images differ, and every image is the same on every call.
    """
    if family_id in NO_IMAGE:
        return None
    spec = _merge(_TABLE["images"][family_id])
    ids = spec.pop("ids")
    tokens = [
        token for part in ids for token in ([part] if isinstance(part, int) else part[:1] * part[1])
    ]
    shape = spec.pop("pixels")
    inputs: dict[str, Any] = {
        "input_ids": mx.array([tokens]),
        "mask": None,
        "pixel_values": _gradient(shape, image),
    }
    for name, value in spec.items():
        ones = isinstance(value, dict)
        inputs[name] = mx.ones(value["ones"], mx.int32) if ones else mx.array(value)
    if family_id.startswith("minicpm"):
        inputs["pixel_values"] = [[inputs["pixel_values"]]]
    if family_id == "deepseek_v41":
        record = {
            name: inputs.pop(name).tolist() for name in ("start", "n_vit_h", "n_vit_w", "types")
        }
        inputs["pixel_values"] = [[SimpleNamespace(patches=inputs["pixel_values"], **record)]]
    return inputs


def _gradient(shape: list[int], image: int) -> mx.array:
    """Return an image: brightness rises from -1 to 1, or in waves."""
    ramp = mx.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape)
    return mx.sin((7.0 + image) * ramp) if image else ramp


def logits_of(model: nn.Module, inputs: Mapping[str, Any]) -> mx.array:
    """Return the logits of a model for `text_inputs` or `image_inputs`."""
    named = {name: value for name, value in inputs.items() if name != "input_ids"}
    # The first argument is called `inputs` in some families.
    output = model(inputs["input_ids"], **named)
    return getattr(output, "logits", output)
