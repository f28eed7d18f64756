"""Headers of safetensors files on the Hub, and folders that have the headers and no weights.

huggingface_hub can read headers too, but only as parsed tensors: without the length of the real
header, a file that is shorter than its tensors goes unnoticed.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, SafetensorsParsingError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)

from dynquant.errors import InvalidModelError, StorageFullError
from dynquant.hub.calls import TIMEOUT_SECS
from dynquant.hub.listing import Listing
from dynquant.model.files import LFS_POINTER, lfs_pointer_found
from dynquant.model.limits import MAX_HEADER_BYTES, headers_too_large, require_few_values

__all__ = ["read_headers", "temporary_folder", "tensors_in", "write_headers"]

_NUM_THREADS = 8
_LENGTH_BYTES = 8
_FIRST_BYTES = 100_000
"""Requested first: nearly every header is shorter, so one request is enough."""
_UNSATISFIABLE = 416


def read_headers(
    api: HfApi,
    call: Callable[[Callable[[], bytes]], bytes],
    listing: Listing,
    names: Sequence[str],
) -> list[bytes]:
    """The first bytes of these files: the length of the header, and the header.

    Args:
        api: The client.
        call: Runs a call of the client; see `calls.HubCaller`.
        listing: The repo.
        names: Of safetensors files in it.

    Raises:
        InvalidModelError: The headers are larger than those of any model, or the repo holds a
            pointer of Git LFS instead of a file.
    """
    headers: list[bytes] = []
    # A few at a time, so that the sum is checked before all of many large headers are read.
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for start in range(0, len(names), _NUM_THREADS):
            reads = [
                partial(_read_header, api, listing, name)
                for name in names[start : start + _NUM_THREADS]
            ]
            headers += pool.map(call, reads)
            if sum(map(len, headers)) > MAX_HEADER_BYTES:
                raise headers_too_large()
    return headers


def write_headers(listing: Listing, headers: Mapping[str, bytes], small: Sequence[Path]) -> Path:
    """A temporary folder with copies of `small` files, and sparse files that start with `headers`.

    Args:
        listing: Has the sizes of the files.
        headers: File name → its first bytes; the rest of the file is a hole.
        small: Files to copy.

    Raises:
        StorageFullError: The folder for temporary files cannot be written.
    """
    folder = temporary_folder()
    try:
        for name, header in headers.items():
            with (folder / name).open("wb") as stream:
                stream.write(header)
                stream.truncate(listing.sizes[name] or 0)
        for path in small:
            shutil.copyfile(path, folder / path.name)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _no_temporary_files() from error
    return folder


def temporary_folder() -> Path:
    """A new folder for headers.

    Raises:
        StorageFullError: The folder for temporary files cannot be written.
    """
    try:
        return Path(tempfile.mkdtemp(prefix="dynquant-headers-"))
    except OSError as error:
        raise _no_temporary_files() from error


def _no_temporary_files() -> StorageFullError:
    return StorageFullError(
        "The folder for temporary files cannot be written. Free some space there, or set "
        "TMPDIR to another folder."
    )


def _read_header(api: HfApi, listing: Listing, name: str) -> bytes:
    """The first bytes of a safetensors file.

    Raises:
        InvalidModelError: As for `read_headers`.
        SafetensorsParsingError: The file is shorter than its header.
        HfHubHTTPError, httpx2.HTTPError: The Hub does not give it.
    """
    url = hf_hub_url(listing.repo, name, revision=listing.sha, endpoint=api.endpoint)
    headers = build_hf_headers(token=api.token, library_name="dynquant")
    content = _read(url, headers, 0, _FIRST_BYTES)
    if content.startswith(LFS_POINTER):
        raise lfs_pointer_found(name)
    num_bytes = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    if len(content) < _LENGTH_BYTES:
        raise SafetensorsParsingError(name)
    if num_bytes > MAX_HEADER_BYTES:
        raise headers_too_large()
    if len(content) < num_bytes:
        content += _read(url, headers, len(content), num_bytes)
    if len(content) < num_bytes:
        raise SafetensorsParsingError(name)
    return content[:num_bytes]


def tensors_in(name: str, header: bytes) -> frozenset[str]:
    """Names of the tensors in the safetensors file `name`.

    Args:
        name: Of the file, for the error.
        header: Its first bytes, from `read_headers`.

    Raises:
        InvalidModelError: The header cannot be parsed, or is larger than that of any model.
    """
    require_few_values(header, name)
    try:
        found = dict(json.loads(header[_LENGTH_BYTES:]))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidModelError(
            f"'{name[:100]}' has no valid header: it is truncated or corrupt. Ask the model's "
            "author to upload it again."
        ) from error
    return frozenset(found) - {"__metadata__"}


def _read(url: str, headers: dict[str, str], start: int, end: int) -> bytes:
    content = bytearray()
    headers = headers | {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECS) as response:
        try:
            hf_raise_for_status(response)
        except HfHubHTTPError:
            if response.status_code == _UNSATISFIABLE:  # the file ends before `start`
                return b""
            raise
        # A server may send the whole file instead of the range.
        skip = 0 if response.status_code == httpx2.codes.PARTIAL_CONTENT else start
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) >= skip + end - start:
                break
    return bytes(content[skip : skip + end - start])
