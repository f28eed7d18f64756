"""The process that `stock_run` starts: load a folder as a user does, run it, generate.

Run as `python -m dynquant.quant.mlx.stock_process FOLDER`, the request as JSON on standard input,
the answer in numpy's format on standard output.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import compute_bits_per_weight

import dynquant.quant.mlx  # noqa: F401  OpenBLAS before MLX
from dynquant.quant.cache_bits import CacheLoss
from dynquant.quant.mlx.cache_losses import cache_losses
from dynquant.quant.mlx.comparing import streamed_logits
from dynquant.quant.mlx.generation_speed import measured_speed
from dynquant.quant.mlx.image_processor import ImageProcessor
from dynquant.quant.mlx.model_inputs import ModelInputs, last_positions
from dynquant.quant.mlx.parameters import clear_parameters, is_switch
from dynquant.quant.mlx.runtimes.mlx_vlm import forget_positions, with_plain_logits
from dynquant.quant.mlx.stock_run import StockRequest
from dynquant.quant.mlx.streaming import BlockModel

_PROMPT = "The"
_QUESTION = "What is in this image?"
_NUM_GENERATED = 24
_IMAGE_PIXELS = 96  # in each direction
_NUM_TIMED_TOKENS = 512
_NUM_CACHES_TRIED = 4  # two widths, each beside the full cache
_CACHES_SECS = 300.0


class _MlxLm:
    """Stock mlx-lm on a folder."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._folder, self._settings = folder, dict(settings)

    def load(self) -> Any:
        from mlx_lm.utils import load_model  # noqa: PLC0415  only if asked for

        model, self._config = load_model(
            self._folder, lazy=True, strict=True, model_config=dict(self._settings)
        )
        return model

    load_for_blocks = load

    def logits(self, model: Any, inputs: ModelInputs) -> mx.array:
        found: mx.array = model(inputs.tokens)
        return found

    def generated(self, model: Any) -> tuple[list[int], list[Any]]:
        from mlx_lm import stream_generate  # noqa: PLC0415
        from mlx_lm.utils import load_tokenizer  # noqa: PLC0415

        eos = self._config.get("eos_token_id")
        tokenizer = load_tokenizer(self._folder, eos_token_ids=eos)
        prompt = list(map(int, tokenizer.encode(_PROMPT)))
        return prompt, list(stream_generate(model, tokenizer, prompt, max_tokens=_NUM_GENERATED))

    def steps(self, model: Any, prompt: Sequence[int], num_tokens: int) -> Any:
        """Tokens behind `prompt`, beyond the end of a text too."""
        from mlx_lm.generate import generate_step  # noqa: PLC0415

        return generate_step(mx.array(list(prompt)), model, max_tokens=num_tokens)


class _MlxVlm:
    """Stock mlx-vlm on a folder without code of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> Any:
        from mlx_vlm.utils import load_model  # noqa: PLC0415  an extra

        return load_model(self._folder, lazy=True)

    def load_for_blocks(self) -> Any:
        """The same model, called as the engine calls models."""
        return with_plain_logits(self.load())

    def logits(self, model: Any, inputs: ModelInputs) -> mx.array:
        forget_positions(model)
        others = {"pixel_values": None, "mask": None, **inputs.others}
        found: mx.array = model(inputs.tokens, **others).logits
        return found

    def generated(self, model: Any) -> tuple[list[int], list[Any]]:
        from mlx_vlm.generate import stream_generate  # noqa: PLC0415

        own = ImageProcessor(self._folder)
        steps = stream_generate(model, own.processor, _PROMPT, max_tokens=_NUM_GENERATED)
        prompt = list(map(int, own.tokenizer.encode(_PROMPT)))
        return prompt, [step for step in steps if step.token is not None]

    def steps(self, model: Any, prompt: Sequence[int], num_tokens: int) -> Any:
        """Tokens behind `prompt`, beyond the end of a text too."""
        from mlx_vlm.generate import generate_step  # noqa: PLC0415

        forget_positions(model)
        return generate_step(mx.array([list(prompt)]), model, None, None, max_tokens=num_tokens)

    def image_inputs(self) -> ModelInputs | None:
        """A question about a generated image; None for a model without a chat template."""
        processor = ImageProcessor(self._folder)
        return processor.inputs(_generated_image(), _QUESTION) if processor.has_template else None


def _main(folder: Path) -> None:
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print does not belong into the answer
    request = StockRequest(**json.load(sys.stdin))
    is_vlm = request.runtime == "mlx-vlm"
    stock: Any = _MlxVlm(folder) if is_vlm else _MlxLm(folder, request.settings)
    windows = [ModelInputs.of(ids) for ids in request.windows]
    model = stock.load()
    facts: dict[str, Any] = {"stored_bpw": compute_bits_per_weight(model)}
    facts |= {"prompt": [], "generated": [], "text": ""}
    arrays: dict[str, np.ndarray] = {}
    if request.image and (inputs := stock.image_inputs()) is not None:
        windows.append(inputs)
        arrays |= {f"image:{name}": array for name, array in inputs.to_arrays().items()}
    runs_own = not request.by_blocks and _can_compute_in_own_dtype(model)
    if not runs_own and not request.by_blocks:
        _compute_wider(model)
    if request.generate:
        prompt, steps = stock.generated(model)
        facts["prompt"], facts["generated"] = prompt, [int(step.token) for step in steps]
        facts["text"] = _PROMPT + "".join(step.text for step in steps)
    facts |= _long_text(stock, model, request.text if runs_own else ())
    if runs_own:
        arrays |= _logits("own", partial(stock.logits, model), windows)
        _compute_wider(model)
    if request.by_blocks:
        arrays |= _logits_by_blocks(stock.load_for_blocks, windows)
    else:
        arrays |= _logits("computed", partial(stock.logits, model), windows)
    facts |= {"has_own": runs_own, "has_computed": True, "num_windows": len(windows)}
    arrays["facts"] = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8)
    np.savez(output, **arrays)  # type: ignore[arg-type]  # its stub takes `allow_pickle` for one
    output.flush()


def _long_text(stock: Any, model: Any, text: Sequence[int]) -> dict[str, Any]:
    """Speed on the beginning of `text`, and what caches of fewer bits cost on more of it."""
    speed = measured_speed(partial(stock.steps, model), text[:_NUM_TIMED_TOKENS])
    losses: list[CacheLoss] = []
    if speed is not None and isinstance(stock, _MlxLm):
        secs = _NUM_CACHES_TRIED * len(text) / speed.prompt_tokens_per_sec
        losses = cache_losses(model, text) if secs <= _CACHES_SECS else []
    return {
        "speed": None if speed is None else asdict(speed),
        "cache_losses": [asdict(each) for each in losses],
    }


def _can_compute_in_own_dtype(model: Any) -> bool:
    """Whether this machine can: on a CPU MLX multiplies unquantized experts in float32 only."""
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    return not on_cpu or not any(is_switch(type(m)) for _, m in model.named_modules())


def _compute_wider(model: Any) -> None:
    """Have `model` compute in float32."""
    model.set_dtype(mx.float32)


def _logits(name: str, run: Any, windows: Sequence[ModelInputs]) -> dict[str, np.ndarray]:
    return {
        f"{name}-{index}": np.asarray(last_positions(inputs, run(inputs)[0]).astype(mx.float32))
        for index, inputs in enumerate(windows)
    }


def _logits_by_blocks(
    load: Callable[[], Any], windows: Sequence[ModelInputs]
) -> dict[str, np.ndarray]:
    model = load()
    weights = dict(tree_flatten(model.parameters()))
    clear_parameters(model)
    blocks = BlockModel(model)
    if not blocks.survey(weights):
        blocks = blocks.treat_as_whole()
    # Loaded anew for each pass: an array that was read stays in memory.
    found = streamed_logits(blocks, lambda: dict(tree_flatten(load().parameters())), windows)
    return {f"computed-{index}": each for index, each in enumerate(found)}


def _generated_image() -> Any:
    """A blue square on a field that goes from black to red and green."""
    from PIL import Image  # noqa: PLC0415  of mlx-vlm

    ramp = np.linspace(0, 255, _IMAGE_PIXELS, dtype=np.uint8)
    pixels = np.zeros((_IMAGE_PIXELS, _IMAGE_PIXELS, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp[None, :], ramp[:, None]
    middle = slice(_IMAGE_PIXELS // 3, 2 * _IMAGE_PIXELS // 3)
    pixels[middle, middle] = (0, 0, 255)
    return Image.fromarray(pixels)


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
