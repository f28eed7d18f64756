"""One streamed pass that encodes every block for every target, as its inputs become known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import prod
from pathlib import Path

import mlx.core as mx

from dynquant.model.config import dtype_names, with_dtype
from dynquant.model.files import DRAFTING
from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.encoders import LayerEncoder, formats_by_path
from dynquant.quant.mlx.folder import weight_files
from dynquant.quant.mlx.importance import Importance
from dynquant.quant.mlx.loading import ModelFolder
from dynquant.quant.mlx.observing import observed
from dynquant.quant.mlx.parameters import takes_mode
from dynquant.quant.mlx.sensitivity import Measurement
from dynquant.quant.mlx.shards import copy_tensors
from dynquant.quant.mlx.streaming import BlockWeights, Forward
from dynquant.quant.mlx.writing import (
    PART_BYTES,
    FolderWriter,
    quantization_config,
    translated_storage_errors,
)
from dynquant.quant.plan import ModelInventory, QuantPlan

__all__ = ["encode_plans", "write_models"]

_NAMED_UNLESS = 64


def write_models(
    model: ModelFolder,
    measurement: Measurement,
    inventory: ModelInventory,
    plans: Mapping[Path, QuantPlan],
    *,
    encoder: str,
    num_sweeps: int,
    importance: Mapping[str, Importance],
    on_step: Callable[[], None],
) -> dict[Path, int]:
    """Write one folder per plan: weights, index, config, tokenizer, heads that draft.

    Args:
        model: The source.
        measurement: The model, and the windows that tell its layers' inputs.
        inventory: Its sizes, and the dtype of scales.
        plans: Empty folder → one format per layer.
        encoder: Name of the encoder.
        num_sweeps: How often it goes over a layer again.
        importance: Path → importance of the layers where inputs alone do not tell it.
        on_step: Called after each block.

    Returns:
        Folder → bytes of weights.

    Raises:
        StorageFullError: The disk is full.
        NonFiniteError: A weight is NaN or infinite; names the layer.
    """
    writers = {
        folder: FolderWriter(
            folder,
            num_parameters=inventory.num_parameters,
            copies=model.copies,
            part_bytes=PART_BYTES // max(1, len(plans)),
        )
        for folder in plans
    }
    encode_plans(
        measurement,
        plans,
        writers,
        encoder=encoder,
        num_sweeps=num_sweeps,
        importance=importance,
        on_step=on_step,
    )
    named, sizes = _named_alone(measurement), dict[Path, int]()
    for folder, writer in writers.items():
        config = dict(model.config)
        if dtype_names(config)[:1] != [inventory.dtype]:
            config = with_dtype(config, inventory.dtype)
        if entry := quantization_config(plans[folder], copies=model.copies, named=named):
            config["quantization"] = entry
        if model.drafting:
            with translated_storage_errors():
                copy_tensors(weight_files(model.folder), model.drafting, folder / DRAFTING)
        sizes[folder] = writer.finish(
            model.folder, config, keep_vision_config=model.config_has_tower
        )
    return sizes


def _named_alone(measurement: Measurement) -> set[str]:
    """Paths of layers that config.json names in any case, not only in another format.

    mlx-vlm skips layers whose size 64 does not divide, unless they are named.
    """
    return {
        path
        for path, layer in measurement.layers.items()
        if not takes_mode(layer) or prod(measurement.shapes[path]) % _NAMED_UNLESS
    }


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
    hessians = measurement.observer()
    layers = LayerEncoder(encoder, hessians, importance, num_sweeps)
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
        with observed(measurement.layers, hessians):
            while forward.next_block is not None:
                forward.step(hessians.pending, write)
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
