"""A folder that this process has written, to read again and to write better values into."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlx.core as mx
import numpy as np

from dynquant.quant.mlx.arrays import Weights
from dynquant.quant.mlx.copies import with_copies
from dynquant.quant.mlx.headers import read_header
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.writing import translated_storage_errors

__all__ = ["WrittenFolder", "replace_arrays"]


class WrittenFolder:
    """A quantized model in a folder of this process.

    Args:
        folder: The folder.
        copies: Path of a head → path of the embedding whose arrays it has too.
    """

    def __init__(self, folder: Path, copies: Mapping[str, str]) -> None:
        self._folder = folder
        self._copies = dict(copies)
        self._model = open_model(folder, dequantize=True)

    def weights(self) -> Weights:
        """Path → weight as MLX computes with it, not rounded further, not yet read."""
        return self._model.lazy_weights(exact=True)

    def stored(self) -> Weights:
        """Name → array as it is stored, not yet read."""
        return self._model.stored_weights()

    def replace(self, arrays: Weights) -> None:
        """Write `arrays` over those of the same name, shape and dtype.

        Raises:
            StorageFullError: The disk cannot be written.
        """
        replace_arrays(self._folder, with_copies(arrays, self._copies))
        self._model = self._model.rewritten()


def replace_arrays(folder: Path, arrays: Mapping[str, mx.array]) -> None:
    """Write `arrays` in place over those of the same name, shape and dtype in a written folder.

    Raises:
        ValueError: An array has another number of bytes than the written one.
        StorageFullError: The disk cannot be written.
    """
    for file in sorted(folder.glob("model*.safetensors")):
        header = read_header(file)
        with translated_storage_errors(), file.open("r+b") as stream:
            first = 8 + int.from_bytes(stream.read(8), "little")
            for name in arrays.keys() & header.keys():
                start, end = header[name]["data_offsets"]
                raw = np.asarray(arrays[name].view(mx.uint8)).tobytes()
                if len(raw) != end - start:
                    raise ValueError(name)
                stream.seek(first + start)
                stream.write(raw)
