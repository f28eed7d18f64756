"""Check a model folder before anything reads it: config, safetensors headers, index.

The files come from strangers, so sizes are checked before they are believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from dynquant.errors import InvalidModelError, ModelNotFoundError, Reason, UnsupportedModelError

__all__ = ["check_folder", "fingerprint", "read_header", "weight_files"]

_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F16": 16, "BF16": 16, "F32": 32, "F64": 64,
    "C64": 64,
}  # fmt: skip
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def weight_files(folder: Path) -> list[Path]:
    """The weight files that mlx-lm reads, by name."""
    return sorted(folder.glob("model*.safetensors"))


def check_folder(folder: Path) -> dict[str, Any]:
    """Refuse a folder that cannot be a model of ours; return its config.

    Raises:
        ModelNotFoundError: There is no such folder.
        InvalidModelError: No usable `config.json`, or weights that are truncated,
            corrupt or missing from the index.
        UnsupportedModelError: Remote code, or only pickled weights.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(
            f"There is no model folder '{folder}'. Pass a folder that holds a config.json, "
            "or a Hub id such as 'Qwen/Qwen3-0.6B'."
        )
    config = _read_config(folder)
    if config.get("model_file") is not None:
        raise UnsupportedModelError(
            "This model brings its own Python code ('model_file' in config.json), and dynquant "
            "never runs code from a model. Ask its author for a version that mlx-lm supports.",
            reason=Reason.OWN_CODE,
        )
    files = weight_files(folder)
    if not files:
        if any(any(folder.glob(pattern)) for pattern in _PICKLED):
            raise UnsupportedModelError(
                "This model has only PyTorch weights (.bin or .pt), which can run code when "
                "opened. Convert them to safetensors first, for example with "
                "https://huggingface.co/spaces/safetensors/convert.",
                reason=Reason.PICKLED_WEIGHTS,
            )
        raise InvalidModelError(
            "There are no weights here: no file matches 'model*.safetensors'. "
            "Download the whole model and try again.",
            reason=Reason.NO_WEIGHTS,
        )
    _check_index(folder, {file.name: read_header(file) for file in files})
    return config


def read_header(file: Path) -> Mapping[str, Mapping[str, Any]]:
    """Tensor name → `dtype`, `shape`, `data_offsets` of a safetensors file, sizes checked.

    Raises:
        InvalidModelError: The file is truncated or its header lies.
    """
    num_bytes = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if num_bytes < 8 or length > min(num_bytes - 8, _MAX_HEADER_BYTES):
            raise _corrupt(file, "it is too short for the header that it announces")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _corrupt(file, "its header is not JSON") from error
    if not isinstance(header, dict):
        raise _corrupt(file, "its header is not a JSON object")
    header.pop("__metadata__", None)
    _check_tensors(file, header, num_bytes - 8 - length)
    return header


def fingerprint(folder: Path) -> str:
    """Hash that names the weights: config and every shard's header, size and first and last bytes.

    Reading every byte of a 100 GB model to name it would cost minutes; the header,
    the size and a sample of the data tell models apart all the same.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in weight_files(folder):
        size = file.stat().st_size
        with file.open("rb") as stream:
            header = stream.read(8 + int.from_bytes(stream.read(8), "little"))
            digest.update(f"{file.name}:{size}".encode() + header)
            for position in range(0, size, max(1, size // 64)):
                stream.seek(position)
                digest.update(stream.read(4096))
    return digest.hexdigest()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise InvalidModelError(
            f"'{folder}' has no config.json, so it is no model folder. "
            "Pass the folder that holds config.json and the safetensors files."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(
            "config.json is not valid JSON. Download the model again."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise InvalidModelError(
            "config.json names no model_type, so nobody can tell what model this is."
        )
    return config


def _check_tensors(file: Path, header: dict[str, Any], num_data_bytes: int) -> None:
    spans = []
    for name, entry in header.items():
        try:
            start, end = entry["data_offsets"]
            bits = _DTYPE_BITS[entry["dtype"]] * prod(entry["shape"])
            valid = 0 <= start <= end <= num_data_bytes and 8 * (end - start) == bits
            valid = valid and all(isinstance(size, int) and size >= 0 for size in entry["shape"])
        except (KeyError, TypeError, ValueError) as error:
            raise _corrupt(file, f"the entry of tensor {name[:80]!r} makes no sense") from error
        if not valid:
            raise _corrupt(file, f"tensor {name[:80]!r} does not fit in it")
        spans.append((start, end))
    spans.sort()
    if any(end > start for (_, end), (start, _) in pairwise(spans)):
        raise _corrupt(file, "tensors overlap in it")


def _check_index(folder: Path, headers: Mapping[str, Mapping[str, Any]]) -> None:
    path = folder / "model.safetensors.index.json"
    if not path.is_file():
        return
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        shards = {str(tensor): str(shard) for tensor, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModelError(
            "model.safetensors.index.json is not a valid index. Download the model again."
        ) from error
    if missing := sorted(set(shards.values()) - set(headers)):
        raise InvalidModelError(
            f"The index lists {len(missing)} weight file(s) that are not here, such as "
            f"'{missing[0][:100]}'. Download the model again, or finish the download."
        )
    lost = [tensor for tensor, shard in shards.items() if tensor not in headers[shard]]
    if lost:
        raise InvalidModelError(
            f"The index places tensor '{lost[0][:100]}' in '{shards[lost[0]][:100]}', which does "
            "not have it. Download the model again."
        )


def _corrupt(file: Path, reason: str) -> InvalidModelError:
    return InvalidModelError(
        f"'{file.name}' is truncated or corrupt: {reason}. Download that file again."
    )
