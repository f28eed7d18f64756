"""Transfers of files: over plain HTTP if they have to be cancelled, with their bytes counted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

from huggingface_hub import constants
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

__all__ = ["ByteCount", "no_progress_bars", "use_plain_http"]

_PIECE_BYTES = 2**20
"""Between two checks whether to go on: half a second at 2 MB a second."""


def use_plain_http() -> None:
    """Have this process move files so that an error in their progress ends a download at once.

    Xet reports progress in a thread of its own, which swallows what is raised there
    (huggingface_hub#4632). `HF_HUB_DISABLE_XET=0` in the environment keeps Xet all the same.
    """
    if "HF_HUB_DISABLE_XET" not in os.environ:
        constants.HF_HUB_DISABLE_XET = True
    constants.DOWNLOAD_CHUNK_SIZE = _PIECE_BYTES


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep the client from drawing its progress bars between ours."""
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


class ByteCount:
    """Replaces the progress bar of huggingface_hub for one download, and counts its bytes."""

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

    # huggingface_hub also calls these on a bar: rates, and bytes on the wire.
    update_transfer = set_postfix_str = set_transfer_postfix_str = refresh = close
