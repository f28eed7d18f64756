"""Stored bits per weight, from the files alone, without code of dynquant or of a peer.

All arrays in a folder of safetensors count: codes, scales, biases and unquantized arrays, over the
number of weights in the original's headers. Beside weights that were decoded from a GGUF file
`gguf.json` has the bytes of its tensors, and these count.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path

__all__ = ["num_weights", "stored_bpw"]


def stored_bpw(folder: Path, original: Path) -> float:
    """Bits in the weight files of `folder` for each weight of `original`."""
    if (decoded := folder / "gguf.json").exists():
        stored_bytes = sum(each["bytes"] for each in json.loads(decoded.read_text()).values())
    else:
        stored_bytes = sum(num_bytes for _, _, num_bytes in _tensors(folder))
    return 8 * stored_bytes / num_weights(original)


def num_weights(folder: Path, *, containing: str = "") -> int:
    """Number of values in the tensors of an unquantized folder with `containing` in their name."""
    return sum(prod(shape) for name, shape, _ in _tensors(folder) if containing in name)


def _tensors(folder: Path) -> Iterator[tuple[str, list[int], int]]:
    """Name, shape and bytes of every tensor."""
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                start, end = entry["data_offsets"]
                yield name, entry["shape"], end - start
