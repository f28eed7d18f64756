from __future__ import annotations

import pytest

from dynquant.quant.mlx.loading import open_model
from dynquant.quant.mlx.reads import read_shares
from tests.quant.mlx.factories import save_model


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_is_read_whole_only_where_it_is_the_head_too(tmp_path, tied):
    folder = save_model(tmp_path / "model", "qwen3", tie_word_embeddings=tied)
    shares = read_shares(open_model(folder))
    assert shares["model.embed_tokens"] == float(tied)
    assert ("lm_head" in shares) is not tied
    del shares["model.embed_tokens"]
    assert set(shares.values()) == {1.0}


def test_a_token_reads_the_experts_that_its_router_chooses(tmp_path):
    folder = save_model(tmp_path / "model", "qwen3_moe", num_experts=8, num_experts_per_tok=2)
    shares = read_shares(open_model(folder))
    experts = {path: share for path, share in shares.items() if "switch_mlp" in path}
    assert len(experts) == 3 * 2
    assert set(experts.values()) == {2 / 8}


def test_asking_reads_no_weight_and_leaves_the_skeleton_empty(tmp_path):
    model = open_model(save_model(tmp_path / "model"))
    read_shares(model)
    assert model.skeleton.model.norm.weight.size == 0


def test_of_a_model_whose_code_fails_nothing_is_known(tmp_path):
    model = open_model(save_model(tmp_path / "model"))

    def fail(*_args, **_kwargs):
        raise ValueError("no")

    model.skeleton.model.layers[1] = fail
    assert read_shares(model) == {}
