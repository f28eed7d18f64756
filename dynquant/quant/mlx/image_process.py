"""The process that `image_inputs` starts: questions about images as a model's inputs.

Run as `python -m dynquant.quant.mlx.image_process FOLDER`, the prompts as JSON on standard input,
the arrays in numpy's format on standard output.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX
from dynquant.quant.mlx.image_processor import ImageProcessor
from dynquant.texts.image_files import opened_image
from dynquant.texts.images import ImagePrompts

_MAX_CHARS = 200


def _main(folder: Path) -> None:
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not belong into the answer
    images = ImagePrompts.from_json(json.load(sys.stdin))
    processor = ImageProcessor(folder)
    try:
        has_template = processor.has_template
    except Exception as error:
        raise SystemExit(_one_line(error)) from error
    if not has_template:
        raise SystemExit("it has no chat template, which says where an image goes")
    arrays: dict[str, np.ndarray] = {}
    for index, prompt in enumerate(images.prompts):
        image = opened_image(prompt)
        try:
            inputs = processor.inputs(image, prompt.question, prompt.answer)
        except Exception as error:
            raise SystemExit(f"of '{prompt.name}' it says: {_one_line(error)}") from error
        arrays |= {f"{index}:{name}": array for name, array in inputs.to_arrays().items()}
        arrays[f"num_text:{index}"] = np.array(inputs.num_text)
    np.savez(output, **arrays)  # type: ignore[arg-type]  # its stub takes `allow_pickle` for one
    output.flush()


def _one_line(error: Exception) -> str:
    """The message of `error`; libraries write several lines, with instructions behind them."""
    return " ".join(str(error).split()).rstrip(".")[:_MAX_CHARS] or type(error).__name__


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
