from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest

from dynquant.quant.cache_bits import CacheLoss, cache_losses_in, cache_share

LOSS = CacheLoss(bits=8, group_size=64, mean_kl_nats=0.001, mean_kl_se_nats=0.0001, num_tokens=1984)


def test_a_cache_of_fewer_bits_has_a_scale_and_a_bias_for_each_group():
    assert cache_share(16) == 1.0
    assert cache_share(8) == 8.5 / 16
    assert cache_share(4, 32) == 5 / 16


def test_losses_survive_json():
    raw = json.loads(json.dumps([asdict(LOSS)]))
    assert cache_losses_in(raw) == (LOSS,)
    assert cache_losses_in([]) == ()


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 3},
        {"group_size": 7},
        {"mean_kl_nats": math.nan},
        {"mean_kl_nats": "0.1"},
        {"mean_kl_se_nats": -1.0},
        {"num_tokens": 0},
        {"num_tokens": 1.5},
    ],
)
def test_a_wrong_loss_of_another_process_is_refused(wrong):
    with pytest.raises((ValueError, TypeError)):
        cache_losses_in([asdict(LOSS) | wrong])


def test_more_losses_than_widths_are_refused():
    with pytest.raises(ValueError, match="bits"):
        cache_losses_in([asdict(LOSS)] * 3)
