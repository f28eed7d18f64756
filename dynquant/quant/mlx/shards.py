"""Put safetensors files together into one, byte by byte, so that none has to fit in memory."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynquant.quant.mlx.folder import read_header

__all__ = ["join_files"]

_COPY_BYTES = 1 << 24  # at a time


def join_files(parts: Sequence[Path], joined: Path) -> None:
    """Move the tensors of `parts`, one file after the other, into the new file `joined`.

    Source: the format as https://huggingface.co/docs/safetensors has it; the header is padded
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
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with joined.open("wb") as target:
        target.write(len(raw).to_bytes(8, "little") + raw)
        for part, size in zip(parts, sizes, strict=True):
            with part.open("rb") as source:
                source.seek(-size, os.SEEK_END)  # behind its header
                shutil.copyfileobj(source, target, _COPY_BYTES)
            part.unlink()
