"""Confinement as on other machines than this one."""

from __future__ import annotations

__all__ = ["as_with_cuda"]


def as_with_cuda(command: list[str]) -> list[str]:
    """The command that `confined` gives, as it acts on a machine with an NVIDIA GPU."""
    start = (
        "from pathlib import Path; from dynquant.sandbox import linux; import runpy\n"
        "linux._CUDA = Path('/dev/null')\n"
        "runpy.run_module('dynquant.sandbox', run_name='__main__', alter_sys=True)"
    )
    python, _, _, *rest = command
    return [python, "-c", start, *rest]
