"""Which runtime a model is converted with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dynquant.errors import Reason, UnsupportedModelError
from dynquant.model.dropped_tensors import has_tower
from dynquant.quant.families import known_families, seeing_families
from dynquant.quant.mlx.runtimes.mlx_lm import MlxLm
from dynquant.quant.mlx.runtimes.mlx_vlm import MlxVlm
from dynquant.quant.mlx.runtimes.ports import Runtime

__all__ = ["choose_runtime"]


def choose_runtime(
    config: Mapping[str, Any], tensors: Iterable[str], *, text_only: bool = False
) -> Runtime:
    """mlx-vlm for a model with a tower, where that library is installed and has the family.

    Args:
        config: `config.json`.
        tensors: Names of all tensors.
        text_only: Leave towers out: mlx-lm.

    Raises:
        UnsupportedModelError: Only mlx-vlm can have the family, and it is not installed.
    """
    family, known = str(config.get("model_type")), known_families() or frozenset()
    if text_only:
        return MlxLm()
    sees = has_tower(tensors)
    if family in (seeing_families() or ()) and (sees or family not in known):
        return MlxVlm()
    if sees and seeing_families() is None and family not in known:
        raise UnsupportedModelError(
            f"mlx-lm has no architecture for model_type '{family[:100]}', and this model sees or "
            "hears. mlx-vlm may have it: install dynquant with its extra, dynquant[vlm].",
            reason=Reason.UNKNOWN_ARCHITECTURE,
        )
    return MlxLm()
