from __future__ import annotations

from dynquant.quant.speed import TokenReads
from dynquant.report.context_section import context_section
from tests.report.card_factories import make_cache_loss, make_facts, make_original, make_row

READS = TokenReads(weight_bytes=4 * 10**9, cache_bytes=4096 * 100_000, num_blocks=28)


def section(*losses, kl_nats: float = 0.01) -> str:
    rows = (make_original(), make_row(mean_kl_nats=kl_nats, num_bytes=4 * 10**9))
    return context_section(make_facts(cache_losses=losses, rows=rows, reads=READS))


def test_nothing_is_said_of_a_cache_that_was_not_tried():
    assert section() == ""
    assert context_section(make_facts(reads=None)) == ""


def test_each_width_has_its_size_loss_and_flags():
    found = section(make_cache_loss(8, 0.0001, mean_kl_se_nats=0.00001))
    assert "| 16 bits | 100 kB | 0 |  |" in found
    row = (
        "| 8 bits | 53.1 kB | 0.000100 ± 0.000010 | "
        "`--kv-bits 8 --kv-group-size 64 --quantized-kv-start 0` |"
    )
    assert row in found
    assert "on 1,984 tokens" in found


def test_the_fewest_bits_that_add_little_are_advised_and_fewer_are_told():
    found = section(make_cache_loss(8, 0.0001), make_cache_loss(4, 0.02))
    assert "A cache of 8 bits adds 1 % to what quantizing the weights lost." in found
    assert "A cache of 4 bits adds 200 %." in found
    assert "A cache of 4 bits adds 2 % to what" in section(
        make_cache_loss(8, 0.00001), make_cache_loss(4, 0.0002)
    )


def test_a_cache_that_costs_much_in_any_width_is_not_advised():
    found = section(make_cache_loss(8, 0.002), make_cache_loss(4, 0.02))
    assert "With fewer bits than 16 the cache costs more than a tenth" in found


def test_longer_contexts_fit_with_fewer_bits():
    found = section(make_cache_loss(8, 0.0001), make_cache_loss(4, 0.02))
    assert "| Mac with | 16 bits | 8 bits | 4 bits |" in found
    # 8 GB, of which two thirds are the GPU's, less 5 % and 4 GB of weights: 1.45 GB of cache.
    assert "| 8 GB | 14,000 | 27,000 | 51,000 |" in found
    assert "| 24 GB |" in found
    assert "| 32 GB |" not in found  # four Macs are enough
