"""Looks for secrets in files and outputs, in all usual encodings."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

__all__ = ["files_in", "spellings", "teller"]


def spellings(secret: str) -> set[bytes]:
    """Encodings of a secret in a file: plain, quoted, in hex, UTF-16, base64 at any offset."""
    plain = secret.encode()
    found = {plain, quote(secret).encode(), secret.encode("utf-16-le"), plain.hex().encode()}
    for start in range(3):
        encoded = base64.b64encode(bytes(start) + plain)
        found.add(encoded[4 if start else 0 : -4])
    return found


def teller(secrets: Iterable[str]) -> Callable[[bytes], list[str]]:
    """A function that names those of `secrets` that a content has."""
    known = {secret: spellings(secret) for secret in secrets}
    return lambda content: [
        secret for secret, ways in known.items() if any(way in content for way in ways)
    ]


def files_in(folder: Path) -> dict[str, bytes]:
    """Path → content of all files below a folder."""
    return {
        f"file {path.relative_to(folder)}": path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }
