"""Folders of small images, drawn on the spot."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

__all__ = ["make_pictures", "picture"]


def picture(seed: int = 0, *, width: int = 64, height: int = 48, form: str = "PNG") -> bytes:
    """The file of an image of noise."""
    from PIL import Image  # of the extra `vlm`

    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, form)
    return stream.getvalue()


def make_pictures(folder: Path, num_images: int = 5, *, first: int = 0) -> Path:
    """A folder of images of several sizes."""
    pytest.importorskip("PIL")
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(first, first + num_images):
        content = picture(index, width=64 + 32 * (index % 3), height=96)
        (folder / f"{index:02}.png").write_bytes(content)
    return folder
