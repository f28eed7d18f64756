from __future__ import annotations

from dataclasses import replace

from dynquant.quant.speed import MeasuredSpeed, TokenReads
from dynquant.report.speed_section import speed_section
from tests.report.card_factories import make_facts

READS = TokenReads(weight_bytes=1_000_000_000, cache_bytes=1_000_000_000, num_blocks=0)
SPEED = MeasuredSpeed(
    machine="Apple M4 Pro, GPU",
    prompt_tokens=512,
    prompt_tokens_per_sec=803.5,
    generated_tokens=64,
    generated_tokens_per_sec=41.25,
)


def test_nothing_known_gives_no_section():
    assert speed_section(make_facts(reads=None, speed=None)) == ""


def test_a_measurement_names_its_machine_and_the_versions():
    section = speed_section(make_facts(reads=None, speed=SPEED))
    assert "Apple M4 Pro, GPU (mlx 0.32.4, mlx-lm 0.32.2): **41.2 tokens a second**" in section
    assert "a prompt of 512 tokens is read at 804 a second" in section
    assert "Estimates" not in section


def test_estimates_tell_both_ends_of_the_context():
    section = speed_section(make_facts(reads=READS, speed=None, context_tokens=8192))
    assert "| M4 Pro | 273 GB/s | 232 | 116 |" in section
    assert "Behind 8,192 tokens" in section
    assert "1.00 GB of weights and, behind 8,192 tokens, 1.00 GB of cache" in section
    assert "Measured" not in section


def test_a_name_of_a_machine_cannot_write_markup():
    section = speed_section(make_facts(reads=None, speed=replace(SPEED, machine="<b>[x](y)")))
    assert "<b>" not in section
    assert "[x](y)" not in section
