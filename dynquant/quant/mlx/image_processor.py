"""The processor of a model in stock mlx-vlm: from an image and a question to the model's inputs.

It belongs into a process of its own (`stock_process`, `image_process`), never into the one that
holds the weights.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dynquant.quant.mlx.model_inputs import ModelInputs

__all__ = ["ImageProcessor", "num_text"]

_IMAGE_TOKENS = ("image_token_index", "image_token_id")
"""Keys of a config with the token that stands for a part of an image."""


class ImageProcessor:
    """The processor, chat template and tokenizer of a folder, without code of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @cached_property
    def processor(self) -> Any:
        """As mlx-vlm loads it."""
        from mlx_vlm import utils  # noqa: PLC0415  an extra

        # The family's package brings the processor that needs no torch.
        utils.get_model_and_args(self._config)
        processor = utils.load_processor(self._folder, trust_remote_code=False)
        if (own := utils.load_image_processor(self._folder, trust_remote_code=False)) is not None:
            processor.image_processor = own
        return processor

    @property
    def tokenizer(self) -> Any:
        """The tokenizer in the processor."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template, which says where an image goes."""
        return bool(getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template)

    def inputs(self, image: Any, question: str, answer: str = "") -> ModelInputs:
        """A question about an image, and the beginning of the reply, as the model takes them."""
        from mlx_vlm.prompt_utils import apply_chat_template  # noqa: PLC0415
        from mlx_vlm.utils import prepare_inputs  # noqa: PLC0415

        asked = apply_chat_template(self.processor, self._config, question, num_images=1)
        prompt = f"{asked}{answer}"
        inputs = ModelInputs.of_processor(
            prepare_inputs(
                self.processor,
                images=[image],
                prompts=[prompt],
                image_token_index=self._config.get("image_token_index"),
            )
        )
        tokens = np.asarray(inputs.tokens[0]).tolist()
        own = self.tokenizer.encode(prompt, add_special_tokens=False)
        images = {self._config[key] for key in _IMAGE_TOKENS if key in self._config}
        return replace(inputs, num_text=num_text(tokens, own, images))

    @cached_property
    def _config(self) -> dict[str, Any]:
        from mlx_vlm.utils import load_config  # noqa: PLC0415

        config: dict[str, Any] = load_config(self._folder)
        return config


def num_text(tokens: Sequence[int], own: Sequence[int], images: Collection[int]) -> int:
    """How many of the last tokens stand behind an image, or are its last one.

    The processor puts many tokens in the place of an image's one, so behind the image are the
    tokens with which the prompt itself ends, and of these the ones from the last token of an image
    on: that one predicts the first token of the text.

    Args:
        tokens: The model's input.
        own: The tokens of the prompt, in which an image is a placeholder.
        images: Tokens that stand for a part of an image.

    >>> num_text([1, 9, 9, 9, 4, 5], [1, 9, 4, 5], {9})
    3
    """
    pairs = zip(reversed(tokens), reversed(own), strict=False)
    alike = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(tokens), len(own)))
    behind = (n for n, token in enumerate(reversed(tokens), 1) if token in images)
    return min(alike, next(behind, alike))
