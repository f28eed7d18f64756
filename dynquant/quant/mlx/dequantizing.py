"""Models that are quantized already: noticed, and their weights brought back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from dynquant.errors import Reason, UnsupportedModelError
from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.encoding import Encoded, decode

__all__ = ["QUANTIZED_PARAMETERS", "dequantized_in", "require_dequantized"]

QUANTIZED_PARAMETERS = ("weight", "scales", "biases", "global_scale")


def dequantized_in(
    model: nn.Module, compute_dtype: Callable[[mx.Dtype], mx.Dtype]
) -> dict[str, tuple[mx.array, mx.Dtype]]:
    """Path of each quantized layer → its weight, and the dtype that mlx-lm gives it.

    Args:
        model: As mlx-lm loads it.
        compute_dtype: A dtype → what this machine computes in, and the weights come in.
    """
    found = {}
    for path, layer in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module):
        if "scales" in layer:
            given = ((name, layer.get(name)) for name in QUANTIZED_PARAMETERS)
            arrays = {name: array for name, array in given if array is not None}
            fmt = QuantFormat(layer.bits, layer.group_size, layer.mode)
            scales = arrays["scales"].dtype
            dtype = scales if fmt.mode == "affine" else mx.bfloat16
            found[path] = decode(Encoded(arrays, fmt), compute_dtype(dtype)), dtype
    return found


def require_dequantized(weights: Mapping[str, mx.array], layers: Collection[str]) -> None:
    """Refuse what only layers of its own kind can read, such as BitNet's packed weights."""
    for path in layers:
        if not mx.issubdtype(weights[f"{path}.weight"].dtype, mx.floating):
            raise UnsupportedModelError(
                f"This model is quantized in a form of its own (layer '{path}'), and cannot be "
                "dequantized. Use the original.",
                reason=Reason.ALREADY_QUANTIZED,
            )
