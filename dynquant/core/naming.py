"""Names of quantized models."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["MAX_NAME_LENGTH", "quantized_name"]

MAX_NAME_LENGTH = 96
"""Longest repo name that the Hub takes (`huggingface_hub.utils.validate_repo_id`)."""

_TARGET_DECIMALS = 4
"""Enough for any target that a person would type; what lies beyond is float noise."""


def quantized_name(source: str, target_bpw: float) -> str:
    """Default name of `source` quantized to `target_bpw`: `Qwen3-8B-MLX-4.5bpw`.

    The result is always a name that the Hub takes.

    Args:
        source: Repo id, or name of a folder.
        target_bpw: Requested bits per weight.
    """
    suffix = f"-MLX-{_plain_decimal(target_bpw)}bpw"
    model = _repo_characters(re.split(r"[/\\]", source.rstrip("/\\"))[-1])
    return model[: MAX_NAME_LENGTH - len(suffix)].rstrip("-.") + suffix


def _plain_decimal(value: float) -> str:
    """`value` with one decimal at least and no trailing zeros."""
    whole, _, decimals = f"{value:.{_TARGET_DECIMALS}f}".partition(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def _repo_characters(text: str) -> str:
    """`text` in the characters of a repo name; `model` when nothing is left."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    joined = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_text)
    single = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", joined))
    return single.strip("-.") or "model"
