from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx

from dynquant.quant.mlx.generation_speed import machine_name, measured_speed

PROMPT = list(range(512))


class Runtime:
    """Generates at once, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def __call__(self, prompt: Sequence[int], num_tokens: int) -> Iterator[object]:
        self.asked.append((len(prompt), num_tokens))
        return iter(range(num_tokens))


def test_a_fast_runtime_reads_the_whole_prompt_and_generates_64_tokens():
    runtime = Runtime()
    found = measured_speed(runtime, PROMPT)
    assert found is not None
    assert runtime.asked[-1] == (found.prompt_tokens, found.generated_tokens) == (512, 64)
    assert found.prompt_tokens_per_sec > 0
    assert found.generated_tokens_per_sec > 0


def test_a_slow_runtime_reads_and_generates_less(monkeypatch):
    clock = iter(range(10_000))  # each look at the clock is a second later
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    runtime = Runtime()
    found = measured_speed(runtime, PROMPT)
    assert found is not None
    assert found.prompt_tokens == 32
    assert found.generated_tokens < 64
    assert found.generated_tokens_per_sec == 1.0


def test_a_prompt_of_a_few_tokens_tells_nothing():
    assert measured_speed(Runtime(), PROMPT[:31]) is None


def test_a_machine_is_named_by_its_chip_and_the_device():
    device = "GPU" if mx.default_device() == mx.Device(mx.gpu) else "CPU"
    assert machine_name() == f"{mx.device_info()['device_name']}, {device}"
