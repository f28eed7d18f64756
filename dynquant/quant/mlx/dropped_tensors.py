"""Which tensors of a source its loader drops, and whether something else holds their values."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Mapping

import mlx.core as mx
from mlx.utils import tree_flatten

from dynquant.errors import UnsupportedModelError
from dynquant.quant.mlx.arrays import Weights

__all__ = ["dropped", "require_held"]

_NAMES_AT_ONCE = 1000  # keyword arguments that a function of MLX takes
_USED = re.compile(r'^"t(\d+)" ->', re.MULTILINE)


def dropped(read: Weights, kept: Weights) -> list[str]:
    """Names of `read` that no array of `kept` is made from; nothing is evaluated.

    A tensor that is only renamed is the same array before and after. A tensor that is joined or
    reshaped is found in the graph of the array that it became a part of.

    Args:
        read: Weights as they are stored.
        kept: The weights that the model's class made of them.
    """
    before, after = set(map(id, read.values())), set(map(id, kept.values()))
    missing = [name for name, array in read.items() if id(array) not in after]
    made = [array for array in kept.values() if id(array) not in before]
    found: list[str] = []
    for start in range(0, len(missing), _NAMES_AT_ONCE):
        some = missing[start : start + _NAMES_AT_ONCE]
        inputs = _inputs_of(made, [read[name] for name in some]) if made else set()
        found += [name for index, name in enumerate(some) if index not in inputs]
    return found


def require_held(
    names: Iterable[str],
    read: Mapping[str, mx.array],
    held: Mapping[str, mx.array],
    *,
    runtime: str = "mlx-lm",
) -> None:
    """Refuse to leave out a tensor whose values nothing else of the model holds.

    Args:
        names: Of tensors that the loader drops.
        read: Name → array of the source.
        held: Path → parameter of the loaded model.
        runtime: The library that loads it.

    Raises:
        UnsupportedModelError: There is such a tensor; names it.
    """
    for name in names:
        own = read[name]
        alike = (each for each in held.values() if each.shape == own.shape)
        if not any(mx.array_equal(own, each).item() for each in alike):
            is_head = name.endswith("lm_head.weight")
            raise UnsupportedModelError(
                f"{runtime} would drop the tensor '{name[:100]}' of this model, which has values "
                "of its own"
                + (
                    ", because its config ties the output head to the embedding "
                    "('tie_word_embeddings'). If the head is meant to be used, set "
                    "'tie_word_embeddings' to false in config.json; else remove that tensor."
                    if is_head
                    else ", and the result would be another model. Look for a version of the model "
                    f"that {runtime} supports, or ask its author what the tensor is for."
                )
            )


def _inputs_of(made: list[mx.array], arrays: list[mx.array]) -> set[int]:
    """Indices of the `arrays` that some of `made` are computed from."""
    graph = io.StringIO()
    # A reshape to the same shape is its own input, so each array gets an operation to go into.
    used = [mx.expand_dims(array, 0) for array in made]
    mx.export_to_dot(graph, *used, **{f"t{index}": array for index, array in enumerate(arrays)})
    return set(map(int, _USED.findall(graph.getvalue())))


def parameters_of(model: object) -> Weights:
    """Path → array of a loaded model."""
    return dict(tree_flatten(model.parameters()))  # type: ignore[attr-defined]
