"""One streamed pass that encodes every block for every target, as its inputs become known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import mlx.core as mx

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.encoders import LayerEncoder, formats_by_path
from dynquant.quant.mlx.importance import Importance
from dynquant.quant.mlx.loading import Weights
from dynquant.quant.mlx.observing import observed
from dynquant.quant.mlx.sensitivity import Measurement
from dynquant.quant.mlx.streaming import BlockWeights, Forward
from dynquant.quant.mlx.writing import FolderWriter
from dynquant.quant.plan import QuantPlan

__all__ = ["encode_plans"]


def encode_plans(
    measurement: Measurement,
    plans: Mapping[Path, QuantPlan],
    writers: Mapping[Path, FolderWriter],
    *,
    encoder: str,
    num_sweeps: int,
    importance: Mapping[str, Importance],
    on_step: Callable[[], None],
) -> None:
    """Encode the model once per plan; a layer's format that several plans share, once.

    Args:
        measurement: The model, and the windows that tell its layers' inputs.
        plans: Folder → one format per layer.
        writers: Folder → where the arrays go.
        encoder: Name of the encoder.
        num_sweeps: How often it goes over a layer again.
        importance: Path → importance of the layers where inputs alone do not tell it.
        on_step: Called after each block.
    """
    watcher = measurement.observer()
    layers = LayerEncoder(encoder, watcher, importance, num_sweeps)
    weights = BlockWeights(measurement.blocks, measurement.load)

    wanted = formats_by_path(plan.formats for plan in plans.values())
    unwritten = list(measurement.blocks.blocks)

    def write(block: str, held: Weights) -> None:
        _write(weights.as_stored(held), layers, wanted, plans, writers)
        unwritten.remove(block)
        layers.leave(measurement.paths_in(block))
        on_step()

    if encoder != "minmax":  # which needs no inputs
        forward = Forward(measurement.blocks, weights, measurement.batches)
        with observed(measurement.layers, watcher):
            while forward.next_block is not None:
                forward.step(watcher.pending, write)
    for block in list(unwritten):
        with weights.holding(block) as held:
            write(block, held)
    for path in list(weights.outer):  # an embedding may be larger than any block
        alone = {path: weights.outer.pop(path)}
        _write(weights.as_stored(alone), layers, wanted, plans, writers)
        layers.leave([path.rpartition(".")[0]])
    on_step()


def _write(
    stored: Weights,
    encoder: LayerEncoder,
    wanted: Mapping[str, Collection[QuantFormat]],
    plans: Mapping[Path, QuantPlan],
    writers: Mapping[Path, FolderWriter],
) -> None:
    def write(path: str, weight: mx.array) -> None:
        for folder, plan in plans.items():
            writers[folder].add_layer(path, encoder.encode(path, weight, plan.formats[path]))

    encoder.encode_ahead(stored, wanted, write)
    paths = {f"{path}.weight": path for path in wanted}
    for name, array in stored.items():
        if name in paths:
            write(paths[name], array)
        else:
            for writer in writers.values():
                writer.add(name, array)
