"""Put safetensors files together into one, byte by byte, so that none has to fit in memory."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynquant.mlx_backend.folder import read_header

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
    starts = list[int]()
    size = 0
    for part in parts:
        with part.open("rb") as stream:
            starts.append(8 + int.from_bytes(stream.read(8), "little"))
        for name, about in read_header(part).items():
            offsets = [offset + size for offset in about["data_offsets"]]
            header[name] = {**about, "data_offsets": offsets}
        size += part.stat().st_size - starts[-1]
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with joined.open("wb") as target:
        target.write(len(raw).to_bytes(8, "little") + raw)
        for part, start in zip(parts, starts, strict=True):
            with part.open("rb") as source:
                source.seek(start)
                shutil.copyfileobj(source, target, _COPY_BYTES)
            part.unlink()
