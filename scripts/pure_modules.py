"""Patterns for `coverage report --include`: the files of the pure modules, see pyproject.toml."""

from __future__ import annotations

import tomllib
from pathlib import Path

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def patterns() -> list[str]:
    """A pattern for each module of the import contract `pure`, and for those below it."""
    contracts = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (pure,) = (each for each in contracts if each["id"] == "pure")
    paths = [str(name).replace(".", "/") for name in pure["source_modules"]]
    return [pattern for path in paths for pattern in (f"{path}.py", f"{path}/*")]


if __name__ == "__main__":
    print(",".join(patterns()))
