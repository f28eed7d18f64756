"""Time a stock runtime on this machine, as it reads a prompt and generates behind it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import mlx.core as mx

from dynquant.quant.speed import MAX_MACHINE_CHARS, MeasuredSpeed

__all__ = ["machine_name", "measured_speed"]

Generate = Callable[[Sequence[int], int], Iterable[object]]
"""Token ids of a prompt, and how many tokens to generate → one item for each, as it is there."""

_NUM_GENERATED = 64
_MIN_GENERATED, _MIN_PROMPT = 8, 32
_READING_SECS = {mx.gpu: 30.0, mx.cpu: 3.0}
_GENERATING_SECS = {mx.gpu: 10.0, mx.cpu: 1.0}
_TRIAL_PROMPT, _TRIAL_TOKENS = 8, 4


def machine_name() -> str:
    """The chip, and whether MLX uses its GPU or CPU, such as `Apple M4 Pro, GPU`."""
    device = "GPU" if mx.default_device() == mx.Device(mx.gpu) else "CPU"
    return f"{mx.device_info()['device_name']}"[: MAX_MACHINE_CHARS - 5] + f", {device}"


def measured_speed(generate: Generate, prompt: Sequence[int]) -> MeasuredSpeed | None:
    """Speed of a model that has run before; None for a prompt that is too short to tell.

    A slow machine gets a shorter prompt and generates less, so that it takes a minute at most, and
    on a CPU some seconds. A GPU runs all once untimed: kernels are compiled at their first use.

    Args:
        generate: The stock runtime.
        prompt: Token ids to read.
    """
    if len(prompt) < _MIN_PROMPT:
        return None
    device = mx.default_device().type
    per_token = _timed(generate, prompt[:_TRIAL_PROMPT], _TRIAL_TOKENS)[1]
    # Reading takes at most as long for each token as generating does.
    num_prompt = _within(per_token, _READING_SECS[device], _MIN_PROMPT, len(prompt))
    num_generated = _within(per_token, _GENERATING_SECS[device], _MIN_GENERATED, _NUM_GENERATED)
    if device == mx.gpu:
        _timed(generate, prompt[:num_prompt], 2)
    reading_secs, per_token = _timed(generate, prompt[:num_prompt], num_generated)
    return MeasuredSpeed(
        machine=machine_name(),
        prompt_tokens=num_prompt,
        prompt_tokens_per_sec=num_prompt / reading_secs,
        generated_tokens=num_generated,
        generated_tokens_per_sec=1 / per_token,
    )


def _within(secs_per_token: float, secs: float, least: int, most: int) -> int:
    return max(least, min(most, int(secs / secs_per_token)))


def _timed(generate: Generate, prompt: Sequence[int], num_tokens: int) -> tuple[float, float]:
    """Seconds until the first token, and for each token behind it."""
    started = time.perf_counter()
    ends = [time.perf_counter() for _ in islice(generate(prompt, num_tokens), num_tokens)]
    return ends[0] - started, max(ends[-1] - ends[0], 1e-9) / (len(ends) - 1)
