"""Write safetensors files by copying bytes of others, so that no tensor has to fit in memory."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Any

from dynquant.quant.mlx.headers import read_header

__all__ = ["copy_tensors", "join_files"]

_COPY_BYTES = 1 << 24  # at a time


def join_files(parts: Sequence[Path], joined: Path) -> None:
    """Move the tensors of `parts`, one file after the other, into the new file `joined`.

    Source: the format is described at https://huggingface.co/docs/safetensors; the header is padded
    with blanks, so that the data begin at a multiple of eight bytes.

    Raises:
        OSError: The disk is full; some of the parts may be gone.
    """
    if len(parts) == 1:
        parts[0].rename(joined)
        return
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    sizes = list[int]()
    for part in parts:
        start, tensors = sum(sizes), read_header(part)
        for name, about in tensors.items():
            offsets = [offset + start for offset in about["data_offsets"]]
            header[name] = {**about, "data_offsets": offsets}
        sizes.append(max(about["data_offsets"][1] for about in tensors.values()))
    with joined.open("wb") as target:
        target.write(_header_bytes(header))
        for part, size in zip(parts, sizes, strict=True):
            with part.open("rb") as source:
                source.seek(-size, os.SEEK_END)  # behind its header
                shutil.copyfileobj(source, target, _COPY_BYTES)
            part.unlink()


def copy_tensors(files: Sequence[Path], names: Collection[str], copied: Path) -> None:
    """Write the tensors `names` of `files` into the new file `copied`, byte for byte.

    Raises:
        OSError: The disk is full; a part of the file may be there.
    """
    # In the layout and names of the original, not in those of MLX.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    spans, position = list[tuple[Path, int, int]](), 0
    for file in files:
        found = read_header(file)
        with file.open("rb") as source:
            data = 8 + int.from_bytes(source.read(8), "little")
        for name in sorted(found.keys() & set(names)):
            start, end = found[name]["data_offsets"]
            header[name] = {**found[name], "data_offsets": [position, position + end - start]}
            spans.append((file, data + start, end - start))
            position += end - start
    with copied.open("wb") as target:
        target.write(_header_bytes(header))
        for file, start, size in spans:
            with file.open("rb") as source:
                source.seek(start)
                _copy(source, target, size)


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    while size > 0:
        read = source.read(min(size, _COPY_BYTES))
        if not read:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        target.write(read)
        size -= len(read)


def _header_bytes(header: dict[str, Any]) -> bytes:
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
