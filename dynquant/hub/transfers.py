"""How files travel: over plain HTTP where a process has to be able to stop, and counted."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Self

from huggingface_hub import constants

__all__ = ["ByteCount", "go_by_plain_http"]

_PIECE_BYTES = 2**20
"""Between two looks at whether to go on: half a second at 2 MB a second."""


def go_by_plain_http() -> None:
    """Have this process move files so that an error in their progress ends a download at once.

    Xet tells of progress in a thread of its own, which swallows what is raised there
    (huggingface_hub#4632). `HF_HUB_DISABLE_XET=0` in the environment keeps it all the same.
    """
    if "HF_HUB_DISABLE_XET" not in os.environ:
        constants.HF_HUB_DISABLE_XET = True
    constants.DOWNLOAD_CHUNK_SIZE = _PIECE_BYTES


class ByteCount:
    """Stands where huggingface_hub draws a bar for one download, and counts its bytes."""

    def __init__(self, on_bytes: Callable[[int], None], **_options: object) -> None:
        self._on_bytes = on_bytes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def update(self, num_bytes: float | None = 1) -> None:
        """Count bytes that arrived."""
        self._on_bytes(int(num_bytes or 0))

    def close(self, *_args: object, **_options: object) -> None:
        """Draw nothing."""

    # What else huggingface_hub calls on a bar: rates, and bytes on the wire.
    update_transfer = set_postfix_str = set_transfer_postfix_str = refresh = close
