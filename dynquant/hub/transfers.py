"""How files travel to and from a process that has to be able to stop: over plain HTTP."""

from __future__ import annotations

import os

from huggingface_hub import constants

__all__ = ["go_by_plain_http"]

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
