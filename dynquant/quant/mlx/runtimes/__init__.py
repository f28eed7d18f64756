"""Runtimes: the libraries that load and run a model, behind one small interface.

mlx-lm runs language models. mlx-vlm, an extra, runs those that see images or hear, with their
towers. The engine (streaming, gradients, encoding, evaluation) runs the modules of both unchanged.
There is no code for one architecture: each library loads and runs a model as it does for a user.
"""

from __future__ import annotations

from dynquant.quant.mlx.runtimes.choice import choose_runtime
from dynquant.quant.mlx.runtimes.ports import Runtime

__all__ = ["Runtime", "choose_runtime"]
