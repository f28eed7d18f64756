"""Which families of models mlx-lm runs, found out without importing it."""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["known_families"]

_REMAPPING = "MODEL_REMAPPING"
"""In `mlx_lm.utils`: `model_type` → the module that runs it."""


@lru_cache(maxsize=1)
def known_families() -> frozenset[str] | None:
    """Every `model_type` that mlx-lm runs; None where it is not installed."""
    spec = find_spec("mlx_lm")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0])
    modules = {file.stem for file in (folder / "models").glob("*.py")}
    return frozenset(modules | _remapped(folder / "utils.py"))


def _remapped(utils: Path) -> set[str]:
    for node in ast.parse(utils.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == _REMAPPING for target in node.targets
        ):
            return set(ast.literal_eval(node.value))
    return set()
