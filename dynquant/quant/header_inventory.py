"""What a model is made of, told by its config and the headers of its weights alone.

Nothing here imports MLX, so that pages and watcher can ask: which families mlx-lm runs is read
from the names and the source of its files.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynquant.errors import Reason, UnsupportedModelError
from dynquant.model.files import CONFIG, INDEX, is_weights
from dynquant.model.limits import (
    MAX_CONFIG_VALUES,
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_SIZE,
    MAX_TENSORS,
    require_few_values,
    too_many_tensors,
)
from dynquant.model.quantized_sources import Tensor, quantized_form
from dynquant.model.source import ModelSource
from dynquant.model.weight_files import chosen_files, weight_map_in
from dynquant.quant.formats import DEFAULT_MENU, UNQUANTIZED
from dynquant.quant.plan import LayerProfile, ModelInventory

__all__ = ["HeaderInventory", "header_inventory", "is_known_family", "known_families"]

_REMAPPING = "MODEL_REMAPPING"
"""In `mlx_lm.utils`: `model_type` → the module that runs it."""
_MODEL_ARGS = re.compile(r"\bModelArgs\b")
"""What every module of a family has, and none that only helps them."""

_DTYPE_BITS = {"F32": 32, "F64": 32}
"""Everything else is kept in 16 bits."""
_CACHE_BYTES_PER_VALUE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderInventory:
    """A model, as far as it is known before its weights are.

    Attributes:
        inventory: Its layers as the headers have them.
        cache_bytes_per_token: Of the key-value cache; None if nobody knows.
    """

    inventory: ModelInventory
    cache_bytes_per_token: int | None


@lru_cache(maxsize=1)
def known_families() -> frozenset[str] | None:
    """Every `model_type` that mlx-lm runs; None where it is not installed."""
    spec = find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    modules = {
        file.stem
        for file in (folder / "models").glob("*.py")
        if _MODEL_ARGS.search(file.read_text(encoding="utf-8"))
    }
    remapped = _remapped(folder / "utils.py")
    return frozenset(modules | {name for name, module in remapped.items() if module in modules})


def is_known_family(model_type: str) -> bool:
    """Whether mlx-lm runs it; where mlx-lm is not installed nothing speaks against it."""
    families = known_families()
    return families is None or model_type in families


def header_inventory(source: ModelSource) -> HeaderInventory:
    """What a model is made of.

    Args:
        source: With its config, and with safetensors files that have their headers at least.

    Raises:
        UnsupportedModelError: mlx-lm does not run it, or it is quantized already.
        InvalidModelError: Its weight files are not those that its index names, or hold more than
            any model does.
    """
    config = _config(source)
    return HeaderInventory(
        inventory=_inventory(source, config), cache_bytes_per_token=_cache_bytes_per_token(config)
    )


def _remapped(utils: Path) -> dict[str, str]:
    for node in ast.parse(utils.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == _REMAPPING for target in node.targets
        ):
            return dict(ast.literal_eval(node.value))
    return {}


def _config(source: ModelSource) -> dict[str, Any]:
    """The config of a model that can be quantized, as far as the config tells.

    Raises:
        UnsupportedModelError: mlx-lm does not run it, or it brings its own code.
    """
    try:
        raw = (source.folder / CONFIG).read_bytes()
        require_few_values(raw, CONFIG, MAX_CONFIG_VALUES)
        config = json.loads(raw.decode())
        family = str(config["model_type"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnsupportedModelError(
            f"The config.json of '{source.name}' names no family of models, so nobody can tell "
            "how to run it. Pass a model for transformers or mlx-lm.",
            reason=Reason.UNKNOWN_ARCHITECTURE,
        ) from error
    if config.get("model_file") is not None:
        raise UnsupportedModelError(
            f"'{source.name}' brings its own Python code, and dynquant never runs code from a "
            "model. Take a version that mlx-lm supports.",
            reason=Reason.OWN_CODE,
        )
    if not is_known_family(family):
        raise UnsupportedModelError(
            f"'{source.name}' is of the family '{family[:60]}', which mlx-lm does not run yet. "
            "Look for a model of another family.",
            reason=Reason.UNKNOWN_ARCHITECTURE,
        )
    return dict(config)


def _inventory(source: ModelSource, config: Mapping[str, Any]) -> ModelInventory:
    """The layers as the headers have them; mlx-lm may join some, which changes no size."""
    index = source.folder / INDEX
    weight_map = weight_map_in(index.read_bytes()) if index.is_file() else {}
    files: dict[str, dict[str, Tensor]] = {}
    num_tensors = 0
    for file in source.folder.iterdir():
        if is_weights(file.name):
            files[file.name] = _tensors(file)
            num_tensors += len(files[file.name])
        if num_tensors > MAX_TENSORS:
            raise too_many_tensors()
    tensors = {
        name: tensor
        for file in chosen_files(files, weight_map).read
        for name, tensor in files[file].items()
    }
    if (form := quantized_form(config, tensors)) is not None:
        raise UnsupportedModelError(
            f"'{source.name}' is quantized already ({form}). Pass the original.",
            reason=Reason.ALREADY_QUANTIZED,
        )
    sized = [
        (name, tensor.shape, _DTYPE_BITS.get(tensor.dtype, 16)) for name, tensor in tensors.items()
    ]
    layers = tuple(
        _layer(name, shape, bits) for name, shape, bits in sized if len(shape) > 1 and all(shape)
    )
    fixed = [(shape, bits) for _, shape, bits in sized if len(shape) == 1]
    num_fixed = sum(shape[0] for shape, _ in fixed)
    num_parameters = sum(layer.num_weights for layer in layers) + num_fixed
    if not num_parameters:
        raise UnsupportedModelError(
            f"The safetensors files of '{source.name}' hold no weights. Take another model.",
            reason=Reason.NO_WEIGHTS,
        )
    return ModelInventory(
        model_type=str(config["model_type"]),
        layers=layers,
        num_parameters=num_parameters,
        fixed_bits=sum(shape[0] * bits for shape, bits in fixed),
        dtype="bfloat16",
    )


def _layer(path: str, shape: tuple[int, ...], dtype_bits: int) -> LayerProfile:
    formats = tuple(fmt for fmt in DEFAULT_MENU if fmt.fits(shape)) or (UNQUANTIZED,)
    return LayerProfile(path=path, shape=shape, dtype_bits=dtype_bits, formats=formats)


def _tensors(file: Path) -> dict[str, Tensor]:
    """Name → dtype and shape of a weight."""
    with file.open("rb") as stream:
        num_bytes = int.from_bytes(stream.read(8), "little")
        raw = stream.read(min(num_bytes, MAX_HEADER_BYTES))
    require_few_values(raw, file.name)
    try:
        header = json.loads(raw)
        header.pop("__metadata__", None)
        return {
            name: Tensor(str(entry["dtype"]), _sizes(entry["shape"]))
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UnsupportedModelError(
            "A safetensors file of this model has a header that cannot be read. Take another "
            "model, or ask its author to upload it again.",
            reason=Reason.INVALID_MODEL,
        ) from error


def _sizes(shape: list[object]) -> tuple[int, ...]:
    sizes = tuple(size for size in shape if isinstance(size, int) and 0 <= size <= MAX_SIZE)
    if len(sizes) < len(shape) or len(sizes) > MAX_DIMENSIONS:
        raise ValueError(shape)
    return sizes


def _cache_bytes_per_token(config: Mapping[str, Any]) -> int | None:
    """Keys and values of all layers; more than a model takes that looks back only so far."""
    text = config.get("text_config") or config
    try:
        num_layers = int(text["num_hidden_layers"])
        if rank := text.get("kv_lora_rank"):  # one compressed vector in place of both
            width = int(rank) + int(text.get("qk_rope_head_dim") or 0)
        else:
            num_heads = int(text["num_attention_heads"])
            head = int(text.get("head_dim") or int(text["hidden_size"]) // num_heads)
            width = 2 * head * int(text.get("num_key_value_heads") or num_heads)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError):
        return None
    return num_layers * width * _CACHE_BYTES_PER_VALUE
