"""Have the system read the weights of the next block while the current block computes.

The weights go into the system's page cache, which it can free at any time, so that a pass needs no
more memory; MLX then reads from there. A block's tensors are found by their names; for models with
other names nothing is read ahead.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from dynquant.errors import DynquantError
from dynquant.quant.mlx.folder import weight_files
from dynquant.quant.mlx.headers import read_header

__all__ = ["ReadAhead", "Span"]

_F_RDADVISE = 44  # macOS, sys/fcntl.h; Python has no name for it
_MAX_ADVISED = 1 << 30  # on macOS a count is an int


class Span(NamedTuple):
    """A range of bytes of a file."""

    file: Path
    start: int
    num_bytes: int


class ReadAhead:
    """Tells the system which bytes of the model in `folder` will be needed soon."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._latest = ""

    def __call__(self, block: str) -> None:
        """Ask for `block`, unless the last call did; returns at once."""
        if block == self._latest:
            return
        self._latest = block
        with suppress(OSError, DynquantError):  # the reader of the weights reports the error
            for span in self.spans_of(block):
                with span.file.open("rb") as stream:
                    _advise(stream.fileno(), span.start, span.num_bytes)

    def spans_of(self, block: str) -> Iterator[Span]:
        """The places of the tensors of `block`."""
        name = ".".join(["", *block.split(".")[-2:], ""])
        return (span for tensor, span in self._spans if name in f".{tensor}")

    @cached_property
    def _spans(self) -> list[tuple[str, Span]]:
        found = list[tuple[str, Span]]()
        for file in weight_files(self._folder):
            offsets = {name: about["data_offsets"] for name, about in read_header(file).items()}
            data = file.stat().st_size - max((end for _, end in offsets.values()), default=0)
            found += [
                (name, Span(file, data + start, end - start))
                for name, (start, end) in offsets.items()
            ]
        return found


def _advise(file: int, start: int, num_bytes: int) -> None:
    if sys.platform == "darwin":
        for first in range(start, start + num_bytes, _MAX_ADVISED):
            count = min(_MAX_ADVISED, start + num_bytes - first)
            fcntl.fcntl(file, _F_RDADVISE, struct.pack("@qi", first, count))
    else:
        os.posix_fadvise(file, start, num_bytes, os.POSIX_FADV_WILLNEED)
