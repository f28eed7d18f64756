"""Run a quantizer of mlx-lm as it is, on our calibration tokens.

    python benchmarks/mlx_lm_peer.py NAME TOKENS.npy [its own arguments]

NAME is dynamic_quant, gptq, awq or dwq, TOKENS are (windows, seq), int32; the rest is the tool's
own `main`. Upstream downloads a calibration text, which this machine may not. On a CPU a bfloat16
matrix product is forty times slower than in float32, so activations are float32 there, and weights
for the gradients too; the stored codes are quantized from the original weights.
"""

from __future__ import annotations

import copy
import importlib
import sys
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

_NUM_VALIDATED = 32  # windows that dwq validates on, as upstream


def main() -> None:
    """Replace the text, then run the tool."""
    name, tokens = sys.argv[1], np.load(sys.argv[2])
    module: Any = importlib.import_module(f"mlx_lm.quant.{name}")
    if name == "dwq":
        samples = [(window.tolist(), 0) for window in tokens]
        split = -min(_NUM_VALIDATED, len(samples) // 8)
        module.load_data = lambda *_args, **_kwargs: (samples[:split], samples[split:])
    else:
        module.load_data = lambda *_args, **_kwargs: mx.array(tokens)
    if mx.default_device() == mx.cpu:
        if name == "dynamic_quant":
            module.estimate_sensitivities = _with_wide_weights(module.estimate_sensitivities)
        else:
            nn.Embedding.__call__ = _wide(nn.Embedding.__call__)  # type: ignore[method-assign]
    sys.argv = [name, *sys.argv[3:]]
    module.main()


def _wide(call: Any) -> Any:
    """An embedding in float32, which promotes all later activations."""
    return lambda self, ids: call(self, ids).astype(mx.float32)


def _with_wide_weights(estimate: Any) -> Any:
    """Sensitivities from a float32 copy of the model."""

    def estimate_wide(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        wide = copy.deepcopy(model)
        wide.update(tree_map(lambda p: p.astype(mx.float32), wide.parameters()))
        return estimate(wide, *args, **kwargs)

    return estimate_wide


if __name__ == "__main__":
    main()
