"""Fit the weights of written folders, one folder after the other, and keep what became better."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np

from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.arrays import Weights, compute_dtype
from dynquant.quant.mlx.calibration import Windows, in_batches
from dynquant.quant.mlx.distillation import distilled
from dynquant.quant.mlx.encoding import Encoded, decode
from dynquant.quant.mlx.evaluation import compare
from dynquant.quant.mlx.loading import ModelFolder
from dynquant.quant.mlx.reconstruction import reconstruct
from dynquant.quant.mlx.streaming import BlockModel, BlockWeights
from dynquant.quant.mlx.writing import translated_storage_errors
from dynquant.quant.mlx.written import WrittenFolder
from dynquant.quant.plan import QuantPlan

__all__ = ["MAX_RECONSTRUCTION_TOKENS", "Fitting"]

logger = logging.getLogger(__name__)

MAX_RECONSTRUCTION_TOKENS = 1 << 17
"""The hidden states of all tokens are in memory while blocks are fitted."""
_RECONSTRUCTION_WINDOWS, _DISTIL_WINDOWS = 2, 4  # in one step
_MAX_DISTIL_EPOCHS = 4


class Fitting:
    """The original, and the windows to fit on and to choose by.

    Args:
        model: The original.
        blocks: Its blocks.
        windows: The calibration windows.
        num_held_out: How many of them, the last ones, are held out.
    """

    def __init__(
        self, model: ModelFolder, blocks: BlockModel, windows: Windows, *, num_held_out: int
    ) -> None:
        self._model = model
        self._blocks = blocks
        self._training = np.concatenate([windows.tokens[:-num_held_out], windows.more])
        self._held_out = windows.tokens[-num_held_out:]

    def reconstruct(
        self,
        plans: Mapping[Path, QuantPlan],
        *,
        num_epochs: int,
        on_block: Callable[[], None],
    ) -> None:
        """Fit the blocks of each folder; it changes only where the model's held-out KL fell.

        Args:
            plans: Written folder → its formats.
            num_epochs: How often each block sees the windows.
            on_block: Called after each block of each folder.
        """
        num_windows = MAX_RECONSTRUCTION_TOKENS // self._training.shape[1]
        batches = in_batches(self._training[:num_windows], _RECONSTRUCTION_WINDOWS)
        held_out = in_batches(self._held_out, _RECONSTRUCTION_WINDOWS)
        for folder, plan in plans.items():
            written = WrittenFolder(folder, self._model.copies)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fitted-") as staging:
                staged = _Staged(Path(staging), plan.formats)
                reconstruct(
                    self._blocks,
                    self._model.lazy_weights,
                    written.weights,
                    written.stored,
                    plan.formats,
                    batches=batches,
                    held_out=held_out,
                    num_epochs=num_epochs,
                    write=staged.add,
                    on_block=on_block,
                )
                if staged.parts and self._is_better(written, staged, held_out):
                    for part in staged.parts:
                        written.replace(staged.read(part))

    def distil(
        self,
        plans: Mapping[Path, QuantPlan],
        *,
        num_steps: int,
        keep_going: Callable[[], bool],
        on_step: Callable[[], None],
    ) -> None:
        """Distil the original into scales, biases and norms of each folder, where that helps.

        Args:
            plans: Written folder → its formats.
            num_steps: Steps at most; fewer where there is little text.
            keep_going: Called before each step.
            on_step: Called after each step.
        """
        batches = in_batches(self._training, _DISTIL_WINDOWS)
        for folder, plan in plans.items():
            formats = {path: fmt for path, fmt in plan.formats.items() if fmt != UNQUANTIZED}
            if all(fmt.mode != "affine" for fmt in formats.values()):
                continue
            written = WrittenFolder(folder, self._model.copies)
            better = distilled(
                self._blocks,
                self._model.lazy_weights,
                written.stored,
                formats,
                batches=batches,
                held_out=in_batches(self._held_out, _DISTIL_WINDOWS),
                num_steps=min(num_steps, _MAX_DISTIL_EPOCHS * len(batches)),
                keep_going=keep_going,
                on_step=on_step,
            )
            if better:
                written.replace(better)

    def _is_better(self, written: WrittenFolder, staged: _Staged, held_out: list[mx.array]) -> bool:
        """Whether the staged weights lower the held-out KL of the whole model."""
        weights = partial(BlockWeights, self._blocks)
        _, found = compare(
            self._blocks,
            weights(self._model.lazy_weights),
            {
                "before": weights(written.weights),
                "after": weights(lambda: written.weights() | staged.weights()),
            },
            held_out,
        )
        before, after = (found[name].mean_kl_nats for name in ("before", "after"))
        logger.info("fitted blocks: held-out KL %.4g, at first %.4g", after, before)
        return after < before


class _Staged:
    """Stored arrays of fitted blocks, in files of their own until they are known to help.

    Args:
        folder: An empty folder.
        formats: Path → format of every layer.
    """

    def __init__(self, folder: Path, formats: Mapping[str, QuantFormat]) -> None:
        self._folder = folder
        self._formats = formats
        self.parts: list[Path] = []

    def add(self, arrays: Weights) -> None:
        """Write the arrays of one block."""
        part = self._folder / f"{len(self.parts):05d}.safetensors"
        with translated_storage_errors():
            mx.save_safetensors(str(part), arrays)
        self.parts.append(part)

    def read(self, part: Path) -> Weights:
        """The arrays of one block, not yet read."""
        arrays = mx.load(str(part))
        assert isinstance(arrays, dict)
        return arrays

    def weights(self) -> Weights:
        """Path → weight of all staged layers, as `WrittenFolder.weights` gives them."""
        found = {}
        for part in self.parts:
            arrays = self.read(part)
            for name in [name for name in arrays if name.endswith(".scales")]:
                path = name.removesuffix(".scales")
                own = {key: arrays[f"{path}.{key}"] for key in ("weight", "scales", "biases")}
                dtype = compute_dtype(arrays[name].dtype)
                found[f"{path}.weight"] = decode(Encoded(own, self._formats[path]), dtype)
        return found
