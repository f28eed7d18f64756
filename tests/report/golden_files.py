"""Comparison with files that a person has looked at."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import pytest

GOLDEN_DIR = Path(__file__).parent / "golden"
UPDATE_VARIABLE = "DYNQUANT_UPDATE_GOLDEN"


def assert_golden(name: str, content: str) -> None:
    """Fail with a diff when `content` is not the golden file `name`.

    `DYNQUANT_UPDATE_GOLDEN=1 pytest tests/report` writes the files anew; look at the diff in git.
    """
    path = GOLDEN_DIR / name
    if os.environ.get(UPDATE_VARIABLE) == "1":
        path.write_text(content, encoding="utf-8", newline="")
    golden = path.read_bytes().decode() if path.exists() else ""
    if content != golden:
        diff = difflib.unified_diff(
            golden.splitlines(keepends=True),
            content.splitlines(keepends=True),
            f"golden/{name}",
            "now",
        )
        pytest.fail(f"{''.join(diff)}\nIf this is right: {UPDATE_VARIABLE}=1 pytest", pytrace=False)
