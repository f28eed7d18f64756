"""Questions about images as inputs of a model, made by its processor in a process of its own."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from dynquant.errors import ImagesError
from dynquant.model.dropped_tensors import Part
from dynquant.quant.mlx.folder import as_loaded, has_processor
from dynquant.quant.mlx.loading import ModelFolder
from dynquant.quant.mlx.model_inputs import ModelInputs
from dynquant.quant.mlx.stock_run import StockFailedError, answer_of
from dynquant.texts.images import ImagePrompts

__all__ = ["image_inputs", "require_tower"]

_MAX_TOKENS = 8192
"""Of one question: the logits of a long one would take gigabytes."""
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_CLASSES = ("processor_class", "image_processor_type", "feature_extractor_type")


def require_tower(model: ModelFolder) -> None:
    """Refuse images for a model that sees none.

    Raises:
        ImagesError: It has no tower, or none is kept.
    """
    if model.has_tower:
        return
    if Part.VISION in model.left_out:
        raise ImagesError(
            "This model sees no images as it is converted: its parts that see are left out. Keep "
            "them (without --text-only, --tower keep or 8, and with the extra dynquant[vlm]), or "
            "leave out --eval-images and --calibration-images."
        )
    raise ImagesError(
        "This model has no part that sees images. Leave out --eval-images and --calibration-images."
    )


def image_inputs(model: ModelFolder, images: ImagePrompts) -> list[ModelInputs]:
    """The inputs that the model's processor makes of each prompt.

    Raises:
        ImagesError: The model sees no images, its processor does not run, or makes something of
            them that the model cannot take.
    """
    require_tower(model)
    name = _processor_name(model.folder)
    if not has_processor(model.folder):
        raise ImagesError(
            "This model has no preprocessor_config.json, which says how an image becomes its "
            "input. Add the file of its original, or leave out --eval-images and "
            "--calibration-images."
        )
    try:
        with (
            as_loaded(model.folder, model.stock_config) as folder,
            answer_of("dynquant.quant.mlx.image_process", folder, images.to_json()) as answer,
        ):
            found = list(_read(answer, len(images.prompts)))
    except StockFailedError as error:
        raise ImagesError(
            f"The processor{name} of this model does not run in stock mlx-vlm, without torch and "
            f"without code of the model's own: {error}. Leave out --eval-images and "
            "--calibration-images."
        ) from error
    for prompt, inputs in zip(images.prompts, found, strict=True):
        _check(inputs, prompt.name, num_rows=model.num_tokens)
    return found


def _read(answer: IO[bytes], num_images: int) -> Iterator[ModelInputs]:
    try:
        with np.load(answer, allow_pickle=False) as arrays:
            for index in range(num_images):
                prefix = f"{index}:"
                own = {
                    name.removeprefix(prefix): arrays[name]
                    for name in arrays.files
                    if name.startswith(prefix)
                }
                inputs = ModelInputs.from_arrays(own)
                num_text = int(arrays[f"num_text:{index}"])
                yield ModelInputs(inputs.tokens, inputs.others, num_text)
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise StockFailedError("its answer cannot be read") from error


def _check(inputs: ModelInputs, name: str, *, num_rows: int | None) -> None:
    num_tokens = inputs.tokens.size
    if inputs.tokens.ndim != 2 or len(inputs.tokens) != 1:
        raise ImagesError(f"The processor of this model makes no single prompt of '{name}'.")
    if num_tokens > _MAX_TOKENS:
        raise ImagesError(
            f"The image '{name}' takes {num_tokens:,} tokens in this model, and {_MAX_TOKENS:,} "
            "are allowed. Pass smaller images."
        )
    if not 1 <= inputs.num_text <= num_tokens:
        raise ImagesError(
            f"In this model's chat template no text stands behind the image '{name}', so nothing "
            "can be compared. Leave out --eval-images and --calibration-images."
        )
    # Some classes of mlx-vlm take negative ids for images; others would read outside of memory.
    if num_rows is not None and np.abs(np.asarray(inputs.tokens)).max() >= num_rows:
        raise ImagesError(
            "The processor of this model makes tokens that its embedding does not have. Take "
            "processor and weights from one version of the model."
        )


def _processor_name(folder: Path) -> str:
    """The class of the processor as its files name it, in quotes; empty if they name none."""
    for file in _PROCESSORS:
        try:
            raw = json.loads((folder / file).read_text(encoding="utf-8"))
            found = next((raw[key] for key in _CLASSES if isinstance(raw.get(key), str)), None)
        except (OSError, ValueError, AttributeError):
            continue
        if found:
            return f" '{found[:100]}'"
    return ""
