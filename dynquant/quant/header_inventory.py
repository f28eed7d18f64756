"""The layers of a model, from its config and the headers of its weights alone.

Pages and watcher use this module, so it does not import MLX: it reads which families mlx-lm runs
from the names and the source of mlx-lm's files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dynquant.errors import Reason, UnsupportedModelError
from dynquant.model.code_finder import coded_weights
from dynquant.model.coded_weights import uncoded
from dynquant.model.dropped_tensors import Part, notes_on, parts_of
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
from dynquant.model.originals import require_original
from dynquant.model.precision import is_float32
from dynquant.model.quantized_sources import Tensor, quantized_form
from dynquant.model.source import ModelSource
from dynquant.model.weight_files import chosen_files, weight_map_in
from dynquant.quant.families import is_known_family, keeps_tower
from dynquant.quant.formats import DEFAULT_MENU, UNQUANTIZED
from dynquant.quant.plan import LayerProfile, ModelInventory

__all__ = ["HeaderInventory", "header_inventory"]


_DTYPE_BITS = {"F32": 32, "F64": 32}
"""All other dtypes are counted as 16 bits."""
_CACHE_BYTES_PER_VALUE = 2
_TOWERS = {Part.VISION, Part.AUDIO}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderInventory:
    """Facts about a model that its config and headers give.

    Attributes:
        inventory: Its layers as the headers have them.
        cache_bytes_per_token: Of the key-value cache; None if it is unknown.
        notes: Sentences on parts of the source that a quant lacks.
    """

    inventory: ModelInventory
    cache_bytes_per_token: int | None
    notes: tuple[str, ...] = ()


def header_inventory(source: ModelSource) -> HeaderInventory:
    """The layers of a model, and the size of its cache.

    Args:
        source: With its config, and with safetensors files that have their headers at least.

    Raises:
        UnsupportedModelError: mlx-lm does not run it, or it is quantized and no original.
        InvalidModelError: Its weight files differ from its index, or exceed the limits for a model.
    """
    config = _config(source)
    tensors = _stored(source, config)
    parts = parts_of(tensors, tensors, config)
    left_out = {part: parts[part] for part in _left_out(config) & parts.keys()}
    dropped = {name for names in left_out.values() for name in names}
    kept = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    in_tower = {name for part in _TOWERS - left_out.keys() for name in parts.get(part, ())}
    return HeaderInventory(
        inventory=_inventory(source, config, kept, in_tower),
        cache_bytes_per_token=_cache_bytes_per_token(config),
        notes=notes_on(left_out),
    )


def _left_out(config: Mapping[str, Any]) -> set[Part]:
    """Parts of the source that a quant lacks, where it has them."""
    towers = set() if keeps_tower(str(config["model_type"])) else _TOWERS
    return {Part.DRAFT, Part.RECOMPUTED, *towers}


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
            f"The config.json of '{source.name}' names no family of models in model_type, so "
            "nothing says how to run it. Pass a model for transformers or mlx-lm.",
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


def _stored(source: ModelSource, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Name → dtype and shape of the tensors in the weight files that count."""
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
        require_original(source.name, form=form, quantized_from=source.quantized_from)
        tensors = uncoded(tensors, coded_weights(tensors, config))
    return tensors


def _inventory(
    source: ModelSource,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    in_tower: Collection[str],
) -> ModelInventory:
    """The layers by the headers; mlx-lm may join some of them, which changes no size.

    Args:
        source: For messages.
        config: Its config.
        tensors: Name → tensor that a quant keeps.
        in_tower: Names of those that are kept as they are.
    """
    wide = {} if is_float32(config, tensors) else _DTYPE_BITS  # stored in bfloat16
    bits = {
        name: (_DTYPE_BITS if name in in_tower else wide).get(tensor.dtype, 16)
        for name, tensor in tensors.items()
    }
    layers = tuple(
        _layer(name, tensor.shape, bits[name])
        for name, tensor in tensors.items()
        if len(tensor.shape) > 1 and all(tensor.shape) and name not in in_tower
    )
    quantized = {layer.path for layer in layers}
    fixed = {name: prod(tensor.shape) for name, tensor in tensors.items() if name not in quantized}
    num_parameters = sum(layer.num_weights for layer in layers) + sum(fixed.values())
    if not num_parameters:
        raise UnsupportedModelError(
            f"The safetensors files of '{source.name}' hold no weights. Take another model.",
            reason=Reason.NO_WEIGHTS,
        )
    towers = {name: fixed[name] for name in fixed if name in in_tower}
    return ModelInventory(
        model_type=str(config["model_type"]),
        layers=layers,
        num_parameters=num_parameters,
        fixed_bits=sum(size * bits[name] for name, size in fixed.items()),
        dtype="bfloat16",
        num_tower_parameters=sum(towers.values()),
        tower_bits=sum(size * bits[name] for name, size in towers.items()),
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
    """Bytes of keys and values of all layers; an upper bound for models with sliding windows."""
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
