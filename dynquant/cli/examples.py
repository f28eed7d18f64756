"""Examples at the end of a command's help; the tests parse each of them."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["EXAMPLES", "epilog"]

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "plan": (
        "dynquant plan Qwen/Qwen3-8B --bpw 3.5,4.5,6",
        "dynquant plan https://huggingface.co/Qwen/Qwen3-8B --fit 16GB",
    ),
    "measure": ("dynquant measure Qwen/Qwen3-8B --out costs.json",),
    "quantize": (
        "dynquant quantize Qwen/Qwen3-0.6B --bpw 4.5 --out quants",
        "dynquant quantize ./my-model --bpw 3.5,4.5 --out quants --effort max",
        "dynquant quantize Qwen/Qwen3-8B --bpw 4 --out quants --cost-table costs.json",
    ),
    "evaluate": ("dynquant evaluate quants/Qwen3-0.6B-MLX-4.5bpw --reference Qwen/Qwen3-0.6B",),
    "convert": (
        "dynquant convert Qwen/Qwen3-8B --bpw 4.5 --to you",
        "dynquant convert Qwen/Qwen3-8B --bpw 3.5,4.5 --to 'you/{model}-{bpw}bpw-MLX' --private",
    ),
    "publish": ("dynquant publish quants/Qwen3-0.6B-MLX-4.5bpw you",),
    "card": ("dynquant card quants/Qwen3-0.6B-MLX-4.5bpw --repo you/Qwen3-0.6B-MLX-4.5bpw",),
    "submit": ("dynquant submit Qwen/Qwen3-8B --bpw 4.5 --to you",),
    "jobs list": ("dynquant jobs list --state failed",),
    "jobs logs": ("dynquant jobs logs 0123456789abcdef0123 --follow",),
    "watch": ("dynquant watch --once --dry-run --config space_config/watch.yaml",),
    "watch explain": ("dynquant watch explain Qwen/Qwen3-8B --config space_config/watch.yaml",),
}


def epilog(command: str) -> str | None:
    """The examples of a command as the end of its help; None without any."""
    lines = EXAMPLES.get(command)
    # For click, \b begins a paragraph whose lines stay as they are.
    return None if lines is None else "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
