from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from dynquant.quant.formats import QuantFormat
from dynquant.quant.mlx.arrays import scalar
from dynquant.quant.mlx.encoders import LayerEncoder
from dynquant.quant.mlx.encoding import Encoded, decode, encode
from dynquant.quant.mlx.hessians import HessianObserver
from dynquant.quant.mlx.importance import Importance, Term
from dynquant.quant.mlx.observing import Observation, Role
from dynquant.quant.mlx.tied_embedding import encode_tied

VOCAB, WIDTH = 96, 64
FMT = QuantFormat(3, 32)


def random(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def inputs(num: int = 500) -> mx.array:
    """Inputs of the head: mostly in a few directions."""
    return random(num, 8, seed=1) @ random(8, WIDTH, seed=2) + 0.3 * random(num, WIDTH, seed=3)


def terms(*, as_table: float) -> tuple[Term, Term]:
    """Importance of tokens of very different frequency, as head and as table."""
    often = mx.exp(2 * random(VOCAB, seed=4))
    x = inputs()
    head = Term(mx.abs(random(VOCAB, seed=5)) + 0.1, mx.square(x).mean(0))
    return head, Term(as_table * often, mx.square(random(WIDTH, seed=6)))


def cost(encoded: Encoded, weight: mx.array, head: Term, table: Term) -> float:
    """The exact cost of the error in both roles."""
    error = np.asarray(decode(encoded) - weight, np.float64)
    as_head = np.square(error @ np.asarray(inputs(), np.float64).T).mean(1)
    as_table = np.square(error) @ np.asarray(table.cols, np.float64)
    return float(as_head @ np.asarray(head.rows) + as_table @ np.asarray(table.rows))


@pytest.mark.parametrize("as_table", [0.01, 1.0, 100.0])
def test_gptq_costs_less_than_least_squares_whichever_role_weighs_more(as_table):
    weight, (head, table) = random(VOCAB, WIDTH), terms(as_table=as_table)
    x = inputs()
    mine = encode_tied(weight, head, table, x.T @ x / len(x), FMT, num_sweeps=2)
    plain = encode(weight, Importance((head, table)).of_rows, FMT)
    assert cost(mine, weight, head, table) < cost(plain, weight, head, table)


def test_every_row_returns_to_its_place():
    """Eight bits: a row out of place would be off by far more than a step."""
    weight, (head, table) = random(VOCAB, WIDTH) + mx.arange(VOCAB)[:, None], terms(as_table=1)
    x = inputs()
    eight = QuantFormat(8, 32)
    found = decode(encode_tied(weight, head, table, x.T @ x / len(x), eight, num_sweeps=0))
    assert scalar(mx.abs(found - weight).max()) < 0.1


def test_the_encoder_recognizes_an_embedding_that_is_the_head_too():
    weight, (head, table), x = random(VOCAB, WIDTH), terms(as_table=1), inputs()
    hessians = HessianObserver({"embed": (VOCAB, WIDTH)}, gram=True)
    hessians(Observation("embed", Role.LOOKUP, mx.array([1, 2, 3]), x))
    hessians(Observation("embed", Role.LINEAR, x, x))
    encoder = LayerEncoder("gptq", hessians, {"embed": Importance((head, table))})
    found = encoder.encode("embed", weight, FMT)
    expected = encode_tied(weight, head, table, x.T @ x / len(x), FMT, num_sweeps=0)
    assert mx.array_equal(found.arrays["weight"], expected.arrays["weight"]).item()


def test_an_embedding_that_is_no_head_keeps_least_squares():
    weight, (_, table) = random(VOCAB, WIDTH), terms(as_table=1)
    hessians = HessianObserver({"embed": (VOCAB, WIDTH)}, gram=True)
    hessians(Observation("embed", Role.LOOKUP, mx.array([1, 2, 3]), inputs()))
    importance = Importance((table,))
    found = LayerEncoder("gptq", hessians, {"embed": importance}).encode("embed", weight, FMT)
    expected = encode(weight, importance.of_rows, FMT)
    assert mx.array_equal(found.arrays["weight"], expected.arrays["weight"]).item()
