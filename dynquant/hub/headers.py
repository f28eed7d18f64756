"""Headers of safetensors files on the Hub, and folders that have the headers and no weights.

huggingface_hub can read headers too, but only as parsed tensors: the length of the real header
is lost, and with it whether the file is as long as its tensors say.
"""

from __future__ import annotations

import json
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_session, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, SafetensorsParsingError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
)

from dynquant.errors import InvalidModelError
from dynquant.hub.calls import TIMEOUT_SECS
from dynquant.model.files import LFS_POINTER, lfs_pointer_found
from dynquant.model.limits import MAX_HEADER_BYTES, headers_too_large, require_few_values

__all__ = ["read_header_bytes", "tensors_in", "write_ghost"]

_LENGTH_BYTES = 8
_FIRST_BYTES = 100_000
"""Asked for first: nearly every header is shorter, so that one request is enough."""
_UNSATISFIABLE = 416


def read_header_bytes(api: HfApi, *, repo: str, name: str, revision: str) -> bytes:
    """The first bytes of a safetensors file: the length of its header, and the header.

    Raises:
        InvalidModelError: The header is larger than those of any model, or the repo holds a
            pointer of Git LFS instead of the file.
        SafetensorsParsingError: The file is shorter than its header.
        HfHubHTTPError, httpx2.HTTPError: What the client raises.
    """
    url = hf_hub_url(repo, name, revision=revision, endpoint=api.endpoint)
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
        header: Its first bytes, as `read_header_bytes` gives them.

    Raises:
        InvalidModelError: They are no header, or larger than that of any model.
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


def write_ghost(path: Path, header: bytes, num_bytes: int) -> None:
    """Write a file of `num_bytes` that starts with `header` and is a hole from there on."""
    with path.open("wb") as stream:
        stream.write(header)
        stream.truncate(num_bytes)


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
