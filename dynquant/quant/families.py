"""Which families of models mlx-lm and mlx-vlm run, read from the names and sources of their files.

Nothing here imports MLX, so that pages and watcher can ask.
"""

from __future__ import annotations

import ast
import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["is_known_family", "keeps_tower", "known_families", "seeing_families"]

_REMAPPING = "MODEL_REMAPPING"
"""In the `utils` of either: `model_type` → the module that runs it."""
_MODEL_ARGS = re.compile(r"\bModelArgs\b")
"""Is in every module of a family of mlx-lm, and in no module that only helps them."""
_TOWER = re.compile(r"\b(Vision|Audio)[A-Z]?\w*|(vision|audio)\w*\.py\b")
"""Is among the names that the package of a family of mlx-vlm exports, or in those of its files."""


@lru_cache(maxsize=1)
def known_families() -> frozenset[str] | None:
    """Every `model_type` that mlx-lm runs; None where it is not installed."""
    folder = _folder("mlx_lm")
    if folder is None:
        return None
    files = (folder / "models").glob("*.py")
    modules = {file.stem for file in files if _MODEL_ARGS.search(file.read_text(encoding="utf-8"))}
    return _with_other_names(modules, folder)


@lru_cache(maxsize=1)
def seeing_families() -> frozenset[str] | None:
    """Every `model_type` that mlx-vlm runs with a tower; None where it is not installed."""
    folder = _folder("mlx_vlm")
    if folder is None:
        return None
    files = (folder / "models").glob("*/__init__.py")
    packages = {file.parent.name for file in files if _TOWER.search(_names_in(file))}
    return _with_other_names(packages, folder)


def is_known_family(model_type: str) -> bool:
    """Whether mlx-lm or mlx-vlm runs it; True where neither is installed."""
    families = known_families()
    return families is None or model_type in families or keeps_tower(model_type)


def keeps_tower(model_type: str) -> bool:
    """Whether a quant of this family keeps its towers.

    On a machine without mlx-lm another machine converts, and its mlx-vlm is taken for granted.
    """
    families = seeing_families()
    return known_families() is None if families is None else model_type in families


def _names_in(package: Path) -> str:
    """The source of a package's `__init__.py`, and the names of the files beside it."""
    return "\n".join([package.read_text("utf-8"), *(f.name for f in package.parent.glob("*.py"))])


def _folder(package: str) -> Path | None:
    spec = find_spec(package)
    locations = None if spec is None else spec.submodule_search_locations
    return Path(locations[0]) if locations else None


def _with_other_names(modules: set[str], folder: Path) -> frozenset[str]:
    """The modules, and the model types that are run by them under another name."""
    others = _remapped(folder / "utils.py").items()
    return frozenset(modules | {name for name, module in others if module in modules})


def _remapped(utils: Path) -> dict[str, str]:
    for node in ast.parse(utils.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == _REMAPPING for target in node.targets
        ):
            return dict(ast.literal_eval(node.value))
    return {}
