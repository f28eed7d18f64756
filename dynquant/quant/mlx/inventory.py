"""The layers and sizes of an open model, as its runtime counts them."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_reduce

from dynquant.quant.formats import DEFAULT_MENU, UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.coded_weights import native_formats
from dynquant.quant.mlx.direct_embeddings import used_directly
from dynquant.quant.mlx.loading import ModelFolder
from dynquant.quant.mlx.parameters import quantizable, takes_mode
from dynquant.quant.plan import LayerProfile, ModelInventory

__all__ = ["inventory_of"]


def inventory_of(model: ModelFolder, menu: Sequence[QuantFormat]) -> ModelInventory:
    """The sizes of a model, and which formats of `menu` each layer may take.

    A layer's own protections (`model.quant_predicate`, such as 8-bit routers)
    stand as floors. A layer that no format of the menu fits stays unquantized, and so does an
    embedding whose weight the model multiplies by itself. The default menu has the form that the
    source is stored in, too, where MLX has it: it costs nothing. Layers of a tower are quantized
    only in its own format.
    """
    if set(menu) == set(DEFAULT_MENU):
        menu = sorted({*menu, *native_formats(model.codes)})
    weights, built = model.lazy_weights(), model.built()
    layers = tuple(_layers(model, weights, menu))
    quantized = {f"{layer.path}.weight" for layer in layers}
    fixed = {path: array for path, array in weights.items() if path not in quantized}
    towers = [layer for layer in layers if not model.runtime.is_language(layer.path)]
    in_tower = [array for path, array in fixed.items() if not model.runtime.is_language(path)]
    dtypes = [str(weights[path].dtype).rpartition(".")[2] for path in sorted(quantized)]
    return ModelInventory(
        model_type=str(model.config["model_type"]),
        layers=layers,
        num_parameters=_count_parameters(built, weights),
        fixed_bits=8 * (sum(array.nbytes for array in fixed.values()) + _buffer_bytes(built)),
        dtype=max(sorted(set(dtypes)), key=dtypes.count) if dtypes else "float32",
        num_tower_parameters=sum(layer.num_weights for layer in towers)
        + sum(array.size for array in in_tower),
        tower_bits=sum(layer.stored_bits(layer.formats[0]) for layer in towers)
        + 8 * sum(array.nbytes for array in in_tower),
    )


def _layers(
    model: ModelFolder, weights: Weights, menu: Sequence[QuantFormat]
) -> list[LayerProfile]:
    """The layers that may be quantized, in the model's order."""
    skeleton, kept = model.skeleton, used_directly(model.skeleton, weights)
    copied, found = [*model.copies.values()], list[LayerProfile]()
    for path, module in quantizable(skeleton).items():
        weight = weights.get(f"{path}.weight")
        if weight is None:  # of a module that is private to another, and holds no parameter
            continue
        if path in kept:
            formats: tuple[QuantFormat, ...] = (UNQUANTIZED,)
        elif model.runtime.is_language(path):
            formats = _allowed(skeleton, path, module, weight.shape, menu)
        elif model.tower_format.fits(weight.shape) and isinstance(module, nn.Linear):
            formats = (model.tower_format,)
        else:
            continue
        if formats == (UNQUANTIZED,) and not model.runtime.is_language(path):
            continue
        found.append(
            LayerProfile(
                path=path,
                shape=tuple(weight.shape),
                dtype_bits=weight.dtype.size * 8,
                formats=formats,
                num_copies=1 + copied.count(path),
            )
        )
    return found


def _allowed(
    model: nn.Module,
    path: str,
    module: nn.Module,
    shape: Sequence[int],
    menu: Sequence[QuantFormat],
) -> tuple[QuantFormat, ...]:
    predicate = getattr(model, "quant_predicate", None)
    protection = predicate(path, module) if predicate is not None else True
    if not protection:
        return (UNQUANTIZED,)
    floor = protection.get("bits", 0) if isinstance(protection, dict) else 0
    any_mode = takes_mode(module)
    formats = tuple(
        fmt
        for fmt in menu
        if fmt.fits(shape)
        and (fmt == UNQUANTIZED or fmt.bits >= floor)
        and (any_mode or fmt.mode in ("affine", "unquantized"))
    )
    return formats or (UNQUANTIZED,)


def _count_parameters(built: nn.Module, weights: Weights) -> int:
    """`mlx_lm.utils.get_total_parameters`: parameters held by leaf modules, private ones too."""
    leaves = tree_flatten(built.leaf_modules(), is_leaf=nn.Module.is_module)
    return sum(
        weights.get(f"{path}.{name}" if path else name, array).size
        for path, leaf in leaves
        for name, array in tree_flatten(leaf.parameters())
    )


def _buffer_bytes(built: nn.Module) -> int:
    """Arrays that modules make for themselves, such as rope frequencies: mlx-lm counts them.

    Counted on modules that never ran: some keep what their first call computed.
    """
    parameters = {id(array) for _, array in tree_flatten(built.parameters())}
    arrays: list[mx.array] = tree_reduce(
        lambda found, leaf: [*found, leaf] if isinstance(leaf, mx.array) else found, built, []
    )
    return sum(array.nbytes for array in arrays if id(array) not in parameters)
