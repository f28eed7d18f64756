from __future__ import annotations

from inspect import signature

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten

from dynquant.errors import InfeasibleTargetError
from dynquant.quant.allocate import check_target
from dynquant.quant.formats import UNQUANTIZED, QuantFormat
from dynquant.quant.mlx.direct_embeddings import used_directly
from dynquant.quant.mlx.inventory import inventory_of
from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.runtimes.mlx_lm import classes_of
from tests.families import FAMILIES, config_of
from tests.quant.mlx.factories import build_model, save_model

MENU = [QuantFormat.from_name(name) for name in ("4g32", "8g32", "unquantized")]
EMBEDDING = "model.embed_tokens"
#: Families that multiply a tied embedding by themselves.
DIRECT = ("llama4_text", "minicpm", "seed_oss")


def direct(family: str, **overrides: object) -> set[str]:
    model, _ = build_model(family, **overrides)
    return used_directly(model, dict(tree_flatten(model.parameters())))


def test_an_embedding_that_is_only_looked_up_may_be_packed():
    assert direct("seed_oss", tie_word_embeddings=False) == set()


def may_be_tied(family: str) -> bool:
    _, args = classes_of(config_of(family))
    return "tie_word_embeddings" in signature(args).parameters


@pytest.mark.parametrize("family", [family for family in FAMILIES if may_be_tied(family)])
def test_no_other_family_keeps_its_tied_embedding_unpacked(family):
    found = direct(family, tie_word_embeddings=True)
    assert found == ({EMBEDDING} if family in DIRECT else set())


def test_the_check_reads_no_weight_and_leaves_no_parameter():
    model, _ = build_model("seed_oss", tie_word_embeddings=True)
    endless = {
        path: mx.broadcast_to(mx.array(0.0), array.shape)
        for path, array in tree_flatten(model.parameters())
    }
    start = mx.get_active_memory()
    assert used_directly(model, endless) == {EMBEDDING}
    assert mx.get_active_memory() <= start
    assert all(array.size == 0 for _, array in tree_flatten(model.parameters()))


def test_such_an_embedding_has_one_format_and_the_range_says_so(tmp_path):
    opened = open_model(save_model(tmp_path / "model", "seed_oss", tie_word_embeddings=True))
    inventory = inventory_of(opened, MENU)
    formats = {layer.path: layer.formats for layer in inventory.layers}
    assert formats[EMBEDDING] == (UNQUANTIZED,)
    assert set(map(len, formats.values())) == {1, len(MENU)}
    with pytest.raises(InfeasibleTargetError):
        check_target(inventory, 4.6)
