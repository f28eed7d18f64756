"""A model's `config.json` as transformers 4 and 5 write it, turned into one that mlx-lm reads.

transformers 5 moved the settings of rotary embeddings into `rope_parameters`, calls the dtype
`dtype`, and tags numbers that JSON does not have. Most modules of mlx-lm know the older spelling
alone and silently take a default for a missing setting. This module adds the older spelling beside
the newer one and removes nothing from the config.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "RopeValue",
    "as_mlx_lm_reads",
    "changed_settings",
    "dtype_names",
    "rope_values",
    "tied_as_stored",
    "with_dtype",
]

_TAG = "__float__"
_TAGGED = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}
_NULL_MEANS_ABSENT = ("quantization", "quantization_config", "rope_parameters", "text_config")
_LANGUAGE_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")
"""Keys under which a config nests the config of the language model."""

_TIED = "tie_word_embeddings"
_HEAD = re.compile(r"(^|\.)lm_head\.weight$")

_DEFAULT = "default"
_FULL, _SLIDING, _LAYER_TYPE = "full_attention", "sliding_attention", "_attention"
_BASES = ("rope_theta", "rotary_emb_base")
_SLIDING_BASES = ("rope_local_base_freq", "rope_local_theta", "swa_rope_theta")
_ROTATED_PARTS = ("partial_rotary_factor", "rotary_pct")
_MOVED = ("original_max_position_embeddings",)
_NO_SCALING = frozenset({_DEFAULT, "mrope"})
"""Kinds of rotary embeddings that rotate the tokens of a text as plain rotary embeddings do."""

_BY_LENGTH = "dynamic"
"""A kind without effect up to the context length of the training."""


@dataclass(frozen=True, slots=True)
class RopeValue:
    """A number of a rotary embedding, and its place in the config.

    Attributes:
        keys: From the top of the config to the number.
        value: The number.
    """

    keys: tuple[str, ...]
    value: float

    def changed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """`config` with a different number in this place."""
        return _with(config, self.keys, 2 * self.value + 1)

    def __str__(self) -> str:
        return ".".join(self.keys)


def as_mlx_lm_reads(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings, in a spelling that every version of mlx-lm's modules reads.

    - `{"__float__": "Infinity"}` is the number infinity.
    - A group of settings that is null is removed.
    - The settings of `rope_parameters` are copied to `rope_theta`, `rope_scaling` and similar keys.
      Where the two differ, `rope_parameters` has precedence, as in transformers.

    >>> as_mlx_lm_reads({"rope_parameters": {"rope_theta": 5e5}})["rope_theta"]
    500000.0
    """
    return _settled(_untagged(config))


def changed_settings(config: Mapping[str, Any], read: Mapping[str, Any]) -> dict[str, Any]:
    """The top-level settings in `read`, made by `as_mlx_lm_reads`, that differ from `config`."""
    plain = _untagged(config)
    missing = {key: None for key in plain if key not in read and plain[key] is not None}
    return missing | {
        key: value for key, value in read.items() if key not in plain or plain[key] != value
    }


def rope_values(config: Mapping[str, Any]) -> list[RopeValue]:
    """The numbers of all rotary embeddings that change the output of a model.

    Those are the bases, and the factors of kinds that scale at every length.
    """
    found = []
    for at, settings in _language_parts(config):
        for keys, group in _rope_groups(settings):
            scales = _kind_of(group) not in {*_NO_SCALING, _BY_LENGTH}
            names = ("rope_theta", "factor") if scales else ("rope_theta",)
            found += [
                RopeValue((*at, *keys, name), float(group[name]))
                for name in names
                if isinstance(group.get(name), int | float) and (name, group[name]) != ("factor", 1)
            ]
    return found


def dtype_names(config: Mapping[str, Any]) -> list[str]:
    """The names of the weights' dtype in the config, the most specific first: `bfloat16`."""
    parts = [settings for _, settings in _language_parts(config)]
    named = [part.get(key) for part in parts for key in ("torch_dtype", "dtype")]
    return [str(name).removeprefix("torch.") for name in named if name is not None]


def with_dtype(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config of a model whose weights are stored in the dtype `name`."""
    keys = [key for key in ("torch_dtype", "dtype") if config.get(key) is not None]
    parts = {
        key: with_dtype(config[key], name)
        for key in _LANGUAGE_PARTS
        if isinstance(config.get(key), Mapping)
    }
    return {**config, **parts, **dict.fromkeys(keys, name)}


def tied_as_stored(config: Mapping[str, Any], tensors: Collection[str]) -> dict[str, Any] | None:
    """The config with `tie_word_embeddings` derived from the stored tensors, where it is missing.

    transformers 5 leaves out the default of a family; mlx-lm may have another default, or require
    the key.

    Args:
        config: As its author wrote it.
        tensors: Names of all tensors.

    Returns:
        None where the config has the key.
    """
    if any(part.get(_TIED) is not None for _, part in _language_parts(config)):
        return None
    return _tied(config, is_tied=not any(_HEAD.search(name) for name in tensors))


def _tied(config: Mapping[str, Any], *, is_tied: bool) -> dict[str, Any]:
    parts = {
        key: _tied(config[key], is_tied=is_tied)
        for key in _LANGUAGE_PARTS
        if isinstance(config.get(key), Mapping)
    }
    return {**config, **parts, _TIED: is_tied}


def _untagged(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {_TAG} and value[_TAG] in _TAGGED:
            return _TAGGED[value[_TAG]]
        return {key: _untagged(each) for key, each in value.items()}
    return [_untagged(each) for each in value] if isinstance(value, list) else value


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    settled = {
        key: _settled(value) if key in _LANGUAGE_PARTS and isinstance(value, Mapping) else value
        for key, value in config.items()
        if value is not None or key not in _NULL_MEANS_ABSENT
    }
    ropes = settled.get("rope_parameters")
    if not isinstance(ropes, Mapping):
        return settled
    # Some modules require the key also where nothing is scaled.
    return {"rope_scaling": None} | settled | _older_spelling(ropes)


def _older_spelling(ropes: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that transformers 4 would have written for `rope_parameters`."""
    if not _is_by_layer_type(ropes):
        return _of_all_layers(ropes)
    by_type = {key: rope for key, rope in ropes.items() if isinstance(rope, Mapping)}
    full, sliding = (by_type.get(key) or {} for key in (_FULL, _SLIDING))
    old = _of_all_layers(full or next(iter(by_type.values()), {}))
    if len({rope.get(_ROTATED_PARTS[0]) for rope in by_type.values()}) > 1:
        for key in _ROTATED_PARTS:  # a value of one type would apply to all layers
            old.pop(key, None)
    base = sliding.get("rope_theta")
    return old | ({} if base is None else dict.fromkeys(_SLIDING_BASES, base))


def _of_all_layers(rope: Mapping[str, Any]) -> dict[str, Any]:
    old: dict[str, Any] = {}
    for names, key in ((_BASES, "rope_theta"), (_ROTATED_PARTS, "partial_rotary_factor")):
        if rope.get(key) is not None:
            old |= dict.fromkeys(names, rope[key])
    old |= {key: rope[key] for key in _MOVED if rope.get(key) is not None}
    kind = _kind_of(rope)
    if kind not in _NO_SCALING:
        # Older modules read `type`, newer modules read `rope_type`.
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        old["rope_scaling"] = scaling | {"type": kind, "rope_type": kind}
    return old


def _rope_groups(settings: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    ropes, scaling = settings.get("rope_parameters"), settings.get("rope_scaling")
    if isinstance(ropes, Mapping):
        if _is_by_layer_type(ropes):
            used = settings.get("layer_types") or list(ropes)
            for layer_type, rope in ropes.items():
                if isinstance(rope, Mapping) and layer_type in used:
                    yield ("rope_parameters", layer_type), dict(rope)
        else:
            yield ("rope_parameters",), dict(ropes)
        return
    if isinstance(scaling, Mapping):
        yield ("rope_scaling",), dict(scaling)
    yield (), {"rope_theta": settings.get("rope_theta")}


def _is_by_layer_type(ropes: Mapping[str, Any]) -> bool:
    return any(key.endswith(_LAYER_TYPE) and isinstance(ropes[key], Mapping) for key in ropes)


def _kind_of(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or _DEFAULT)


def _language_parts(
    config: Mapping[str, Any], at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    yield at, config
    for key in _LANGUAGE_PARTS:
        if isinstance(part := config.get(key), Mapping):
            yield from _language_parts(part, (*at, key))


def _with(config: Mapping[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = keys
    return {**config, first: _with(config[first], tuple(rest), value) if rest else value}
