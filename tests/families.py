"""Tiny random models of every family that mlx-lm can instantiate.

The configurations live in ``family_configs.json``. There a family is a list whose items are
merged from left to right: a string names a group of shared values, an object holds the keys of
the family itself. ``text_config`` may be such a list too, and ``model_type`` is the id of the
family unless it is given. Keys that a family does not know are ignored by mlx-lm, which is why
groups can be shared.
"""

from __future__ import annotations

import ast
import copy
import functools
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.utils import _get_classes, save_config, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

_TABLE = Path(__file__).with_name("family_configs.json")

#: Modules whose ``sanitize`` changes values on every load, until they are its fixed point.
_FIXED_POINT = ("baichuan_m1",)


def _merge(parts: list[Any], groups: Mapping[str, Any]) -> dict[str, Any]:
    """Merge the group names and objects of ``parts``, later ones winning."""
    merged: dict[str, Any] = {}
    for part in parts:
        merged.update(groups[part] if isinstance(part, str) else part)
    if isinstance(nested := merged.get("text_config"), list):
        merged["text_config"] = _merge(nested, groups)
    return copy.deepcopy(merged)


def _load_table() -> dict[str, Mapping[str, object]]:
    """Read ``family_configs.json`` into full configurations."""
    table = json.loads(_TABLE.read_text(encoding="utf-8"))
    return {
        family_id: {"model_type": family_id, **_merge(parts, table["groups"])}
        for family_id, parts in table["families"].items()
    }


#: Family id -> its whole ``config.json``. Ids are model types, or a model type and a variant.
FAMILIES: Mapping[str, Mapping[str, object]] = MappingProxyType(_load_table())

#: Module of ``mlx_lm.models`` without a family in the table -> why.
EXCLUDED: Mapping[str, str] = MappingProxyType(
    {
        "bitnet": "its linear layers hold packed ternary weights and run as a Metal kernel without "
        "fallback, so that there is no forward pass elsewhere",
        "muse_spark": "its attention runs as the Metal kernel qk_norm_rope without fallback, so "
        "that there is no forward pass elsewhere",
        "olmo": "importing the module ends the process unless the package ai2-olmo, which has "
        "hf_olmo, is installed",
    }
)

#: Family id -> why stock mlx-lm cannot load the model that it has itself saved.
STOCK_CANNOT_RELOAD: Mapping[str, str] = MappingProxyType(
    {
        "gear-conv": "AutoTokenizer.from_pretrained validates config.json and raises "
        "StrictDataclassClassValidationError: Class validation error for validator "
        "'validate_layer_type': ValueError: The `layer_types` entries must be in "
        "('full_attention', 'sliding_attention', ...) but got "
        "['sliding_attention', 'conv_mixer', 'full_attention'] "
        "(mlx_lm.utils.load_model alone does load it)",
    }
)

#: Family id -> why some of its logits are not finite, by design.
MASKED_LOGITS: Mapping[str, str] = MappingProxyType(
    {"phi3small": "the model sets the logits of 91 unused ids from 100256 on to -inf"}
)

#: Family id -> why its layers are judged by the error at their block's output.
NO_GRADIENT: Mapping[str, str] = MappingProxyType(
    {
        "deepseek_v41": "its activations are rounded to FP8 and picked by indices that mlx would "
        "differentiate: [gather_axis] Cannot calculate VJP with respect to indices",
    }
)

#: Family id -> why it is measured and encoded as a whole instead of block by block.
WHOLE: Mapping[str, str] = MappingProxyType(
    {
        "iquestloopcoder": "the model runs the parts of its blocks itself, twice over, and never "
        "calls a block",
    }
)

#: Family id -> why dynquant refuses it.
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "prism_hadamard_qwen35": "it exists only quantized, as 2-bit Hadamard packs that its "
        "constructor insists on, so that there are no weights to quantize",
    }
)


@functools.cache
def all_model_modules() -> list[str]:
    """Return the modules of ``mlx_lm.models`` that define both ``Model`` and ``ModelArgs``.

    The sources are read, not imported, since importing ``olmo`` may end the process.
    """
    names = []
    for path in Path(next(iter(mlx_lm.models.__path__))).glob("*.py"):
        bound = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                bound.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                bound.update(alias.asname or alias.name for alias in node.names)
        if {"Model", "ModelArgs"} <= bound:
            names.append(path.stem)
    return sorted(names)


def config_of(family_id: str) -> dict[str, Any]:
    """Return a copy of the configuration of a family that the caller may change."""
    return copy.deepcopy(dict(FAMILIES[family_id]))


def module_of(family_id: str) -> str:
    """Return the module of ``mlx_lm.models`` that implements a family, after remapping."""
    _, args_class = _get_classes(config_of(family_id))
    return str(args_class.__module__).rpartition(".")[2]


def vocab_size_of(family_id: str) -> int:
    """Return how many token ids a family accepts."""
    config = config_of(family_id)
    text_config: Mapping[str, int] = config.get("text_config", config)
    return text_config["vocab_size"]


def build(family_id: str, *, seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
    """Instantiate a family in float32 with weights that depend on ``seed`` only.

    Matrices keep the initialisation of their layer, of size 1/sqrt(fan-in). Constant values
    of a constructor (norm weights, biases, zero matrices that wait for a checkpoint) are perturbed,
    so that no weight is trivially representable and every path carries a signal.
    The global random state is left as it was.
    """
    config = config_of(family_id)
    model_class, args_class = _get_classes(config)
    random_state: Any = mx.random.state
    state = [int(word) for word in random_state[0].tolist()]
    try:
        mx.random.seed(seed)
        model = model_class(args_class.from_dict(copy.deepcopy(config)))
        mx.eval(model.parameters())
    finally:
        mx.random.seed((state[0] << 32) | state[1])
    model.update(
        tree_map_with_path(lambda path, value: _tame(path, value, seed), model.parameters())
    )
    for path, module in model.named_modules():
        if {"scales", "biases", "weight"} <= module.keys():
            _fill_packed(path, module, seed)
    if module_of(family_id) in _FIXED_POINT:
        weights = model.sanitize(dict(tree_flatten(model.parameters())))
        model.load_weights(list(weights.items()))
    mx.eval(model.parameters())
    model.eval()
    return model, config


def _key(path: str, seed: int) -> mx.array:
    """Return the random key of the parameter at ``path``."""
    return mx.random.key((seed << 32) | zlib.crc32(path.encode()))


def _tame(path: str, value: mx.array, seed: int) -> mx.array:
    """Return ``value`` in float32, perturbed if it is a constant."""
    if not mx.issubdtype(value.dtype, mx.floating):
        return value
    value = value.astype(mx.float32)
    if value.size == 0 or mx.any(value != value.reshape(-1)[0]).item():
        return value
    scale = 0.05 if value.ndim < 2 else 0.5 * value.shape[-1] ** -0.5
    return value + scale * mx.random.normal(value.shape, key=_key(path, seed))


def _fill_packed(path: str, module: nn.Module, seed: int) -> None:
    """Give a layer that is born quantized the packed form of a random matrix."""
    rows, words = module.weight.shape
    width = words * 32 // module.bits
    matrix = mx.random.normal((rows, width), key=_key(path, seed)) * width**-0.5
    module.weight, module.scales, module.biases = mx.quantize(
        matrix, group_size=module.group_size, bits=module.bits
    )
    if "signs" in module:
        coins = mx.random.bernoulli(0.5, module.signs.shape, key=_key(f"{path}.signs", seed))
        module.signs = mx.where(coins, 1.0, -1.0)


def cast(model: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """Cast the float parameters of ``model`` in place, as ``mlx_lm.convert`` would."""
    wanted = getattr(model, "cast_predicate", lambda _: True)

    def convert(path: str, value: mx.array) -> mx.array:
        if wanted(path) and mx.issubdtype(value.dtype, mx.floating):
            return value.astype(dtype)
        return value

    model.update(tree_map_with_path(convert, model.parameters()))
    return model


def save(family_id: str, folder: Path, *, dtype: mx.Dtype = mx.bfloat16, seed: int = 0) -> Path:
    """Write a family to ``folder`` as a conversion by mlx-lm would, with a tokenizer."""
    model, config = build(family_id, seed=seed)
    cast(model, dtype)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    save_tokenizer(folder, vocab_size_of(family_id))
    return folder


def save_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write a tokenizer of at most ``vocab_size`` tokens for printable ASCII to ``folder``."""
    # Bytes as ByteLevel spells them: all but the space and the newline stand for themselves.
    letters = ["\u010a", "\u0120", *map(chr, range(33, 127))]
    pieces = ["<unk>", "<s>", "</s>", *letters]
    merges = [(c, v) for v in "eaoiu" for c in "tnrslhdcmpgbfwvykjxqz"][: vocab_size - len(pieces)]
    pieces += [left + right for left, right in merges]
    vocab = {piece: token for token, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(pieces[:3])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2))
