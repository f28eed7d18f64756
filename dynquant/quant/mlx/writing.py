"""Write a quantized model into a folder that any MLX loader opens, or leave no trace."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlx.core as mx
from mlx_lm import utils as mlx_lm_utils

from dynquant.errors import disk_errors_translated
from dynquant.model.files import CONFIG, INDEX
from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.encoding import Encoded
from dynquant.quant.mlx.folder import taken_over
from dynquant.quant.mlx.shards import join_files
from dynquant.quant.plan import QuantPlan

__all__ = [
    "PART_BYTES",
    "FolderWriter",
    "quantization_config",
    "translated_storage_errors",
    "write_companions",
]

PART_BYTES = 1 << 28
"""Held in memory before it is written, of all folders that are written side by side."""

_SHARD_BYTES = 1 << 30


class FolderWriter:
    """Takes arrays one by one and writes them in shards, in a folder not yet final.

    Args:
        folder: An empty folder.
        num_parameters: For the index's metadata.
        copies: Path of a layer → path of the layer whose arrays are written under it too.
        shard_bytes: Largest size of a shard, unless one array alone is larger.
        part_bytes: Most bytes to hold in memory, unless one array alone is larger.
    """

    def __init__(
        self,
        folder: Path,
        *,
        num_parameters: int,
        copies: Mapping[str, str] = MappingProxyType({}),
        shard_bytes: int = _SHARD_BYTES,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._folder = folder
        self._num_parameters = num_parameters
        self._copies = copies
        self._shard_bytes = shard_bytes
        self._part_bytes = part_bytes
        self._pending: dict[str, mx.array] = {}
        self._parts: list[Path] = []
        self._names: list[str] = []
        self._num_bytes = 0
        self._total_bytes = 0
        self._shards: list[list[str]] = []

    def add(self, name: str, array: mx.array) -> None:
        """Write parameter `name`."""
        pending = sum(each.nbytes for each in self._pending.values())
        if self._names and self._num_bytes + array.nbytes > self._shard_bytes:
            self._close_shard()
        elif self._pending and pending + array.nbytes > self._part_bytes:
            self._write_part()
        mx.eval(array)  # what it is made from would wait with it
        self._pending[name] = array
        self._names.append(name)
        self._num_bytes += array.nbytes

    def add_layer(self, path: str, encoded: Encoded) -> None:
        """Write the arrays of the layer at `path`."""
        for under in (path, *(copy for copy, of in self._copies.items() if of == path)):
            for name, array in encoded.arrays.items():
                self.add(f"{under}.{name}", array)

    def finish(self, source: Path, config: Mapping[str, Any], *, keep_vision_config: bool) -> int:
        """Write the last shard, the index, the config and the source's tokenizer and license.

        Returns:
            Bytes of weights written.
        """
        self._close_shard()
        count = len(self._shards)
        weight_map = {}
        with translated_storage_errors():
            for number, names in enumerate(self._shards, start=1):
                final = f"model-{number:05d}-of-{count:05d}.safetensors"
                if count == 1:
                    final = "model.safetensors"
                (self._folder / _staged(number)).rename(self._folder / final)
                weight_map.update(dict.fromkeys(names, final))
            index = {
                "metadata": {
                    "total_size": self._total_bytes,
                    "total_parameters": self._num_parameters,
                },
                "weight_map": dict(sorted(weight_map.items())),
            }
            path = self._folder / INDEX
            path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
            write_companions(self._folder, source, config, keep_vision_config=keep_vision_config)
        return self._total_bytes

    def _write_part(self) -> None:
        part = self._folder / f"part-{len(self._parts):05d}.staged.safetensors"
        with translated_storage_errors():
            mx.save_safetensors(str(part), self._pending, metadata={"format": "mlx"})
        self._parts.append(part)
        self._pending = {}
        mx.clear_cache()

    def _close_shard(self) -> None:
        if not self._names:
            return
        self._write_part()
        self._shards.append(self._names)
        with translated_storage_errors():
            join_files(self._parts, self._folder / _staged(len(self._shards)))
        self._total_bytes += self._num_bytes
        self._parts, self._names, self._num_bytes = [], [], 0


def write_companions(
    folder: Path, source: Path, config: Mapping[str, Any], *, keep_vision_config: bool
) -> None:
    """Write all that a quantized model has beside its weights: config, tokenizer, license.

    Args:
        folder: Where to write.
        source: Folder of the original.
        config: Of the quantized model.
        keep_vision_config: Whether the model keeps its vision tower.
    """
    mlx_lm_utils.save_config(dict(config), folder / CONFIG, keep_vision_config=keep_vision_config)
    for name in taken_over(source):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def quantization_config(
    plan: QuantPlan,
    *,
    copies: Mapping[str, str] = MappingProxyType({}),
    named: Collection[str] = (),
) -> dict[str, Any]:
    """The `quantization` entry of config.json; empty when nothing is quantized.

    The most common format stands at the top level, every other layer by its path.

    Args:
        plan: The plan.
        copies: Path of a layer → path of the layer whose arrays it has too.
        named: Paths of layers that stand by their path in any case. For the others mlx-lm
            infers an entry with a `mode`, which some layers do not take.
    """
    if all(fmt.mode == "unquantized" for fmt in plan.formats.values()):
        return {}
    common = plan.most_common
    entry: dict[str, Any] = _settings(common) | {"mode": common.mode}
    stored = {copy: plan.formats[path] for copy, path in copies.items()}
    for path, fmt in (*plan.formats.items(), *stored.items()):
        if fmt.mode == "unquantized":
            entry[path] = False
        elif fmt != common or path in named:
            # `affine` is every layer's default, and some layers take no `mode`.
            mode = {} if fmt.mode == "affine" else {"mode": fmt.mode}
            entry[path] = _settings(fmt) | mode
    return entry


@contextmanager
def translated_storage_errors() -> Iterator[None]:
    """Turn a full or vanished disk into our own error.

    Raises:
        StorageFullError: The disk is full or cannot be written.
    """
    with disk_errors_translated():
        try:
            yield
        except RuntimeError as error:  # what MLX makes of it
            raise OSError(errno.EIO, str(error)) from error


def _settings(fmt: QuantFormat) -> dict[str, int]:
    return {"group_size": fmt.group_size, "bits": fmt.bits}


def _staged(number: int) -> str:
    return f"shard-{number:05d}.staged.safetensors"
