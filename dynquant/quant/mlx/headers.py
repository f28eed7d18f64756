"""The header of a safetensors file, with its sizes checked before they are used."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from dynquant.errors import InvalidModelError
from dynquant.model.limits import (
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    MAX_SIZE,
    MAX_TENSORS,
    headers_too_large,
    require_few_values,
    too_many_tensors,
)

__all__ = ["Header", "read_header", "read_headers"]

Header = Mapping[str, Mapping[str, Any]]
"""Tensor name → `dtype`, `shape`, `data_offsets`."""

_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F16": 16, "BF16": 16, "F32": 32, "F64": 64,
    "C64": 64,
}  # fmt: skip


def read_header(file: Path, *, max_bytes: int = MAX_HEADER_BYTES) -> Header:
    """The header of a safetensors file, sizes checked.

    Raises:
        InvalidModelError: The file is truncated, or its header contradicts its size.
    """
    num_bytes = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if num_bytes < 8 or length > num_bytes - 8:
            raise _corrupt(file, "it is too short for the header that it announces")
        if length > max_bytes:
            raise headers_too_large()
        raw = stream.read(length)
    require_few_values(raw, file.name)
    try:
        header = json.loads(raw, object_pairs_hook=_once_each)
    except _TwiceError as error:
        raise _corrupt(file, f"{error} stands twice in its header") from error
    except (ValueError, RecursionError) as error:
        raise _corrupt(file, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _corrupt(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    _check_tensors(file, header, num_bytes - 8 - length)
    return header


class _TwiceError(ValueError):
    """A key that a JSON object has twice; readers differ in which value they take."""


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _TwiceError(repr(name[:80]))
        found[name] = value
    return found


def read_headers(files: list[Path]) -> dict[str, Header]:
    """File name → its header; the size of all headers together is limited."""
    headers: dict[str, Header] = {}
    left, num_tensors = MAX_HEADER_BYTES, 0
    for file in files:
        headers[file.name] = read_header(file, max_bytes=left)
        num_tensors += len(headers[file.name])
        with file.open("rb") as stream:
            left -= int.from_bytes(stream.read(8), "little")
        if num_tensors > MAX_TENSORS:
            raise too_many_tensors()
    return headers


def _check_tensors(file: Path, header: dict[str, Any], num_data_bytes: int) -> None:
    spans = []
    for name, entry in header.items():
        try:
            shape, (start, end) = entry["shape"], entry["data_offsets"]
            valid = len(shape) <= MAX_DIMENSIONS and all(map(_is_size, (*shape, start, end)))
            bits = _DTYPE_BITS[entry["dtype"]] * prod(shape) if valid else 0
            valid = valid and start <= end <= num_data_bytes and 8 * (end - start) == bits
        except (KeyError, TypeError, ValueError) as error:
            raise _corrupt(file, f"the entry of tensor {name[:80]!r} makes no sense") from error
        if not valid:
            raise _corrupt(file, f"tensor {name[:80]!r} does not fit in it")
        spans.append((start, end))
    spans.sort()
    edges = [(0, 0), *spans, (num_data_bytes, num_data_bytes)]
    if any(end > start for (_, end), (start, _) in pairwise(edges)):
        raise _corrupt(file, "tensors overlap in it")
    if any(end < start for (_, end), (start, _) in pairwise(edges)):
        raise _corrupt(file, "some of its bytes belong to no tensor")


def _is_size(size: object) -> bool:
    return type(size) is int and 0 <= size <= MAX_SIZE


def _corrupt(file: Path, reason: str) -> InvalidModelError:
    return InvalidModelError(
        f"'{file.name}' is truncated or corrupt: {reason}. Download that file again; if it is the "
        "same there, ask the model's author."
    )
