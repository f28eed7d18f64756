"""Rotary embeddings as transformers 5 writes them, in every family that mlx-lm has."""

from __future__ import annotations

from typing import Any

import pytest

from dynquant.errors import UnsupportedModelError
from dynquant.model.config import as_mlx_lm_reads
from dynquant.quant.mlx.ropes import _constants, _equal, require_ropes_read
from dynquant.quant.mlx.runtimes.mlx_lm import MlxLm
from tests.families import FAMILIES, config_of

BASES = ("rope_theta", "rotary_emb_base")
LOCAL_BASES = ("rope_local_base_freq", "swa_rope_theta", "rope_local_theta")
SHARES = ("partial_rotary_factor", "rotary_pct")

#: Family → why its module does not read the base that its config may name.
FIXED_BASE = {
    "plamo2": "its base is a constant of the module",
    "recurrent_gemma": "its base is a constant of the module",
}
#: Family → why the rewritten config is another model.
UNLIKE = {
    "minicpm3": "its kind of scaling has no name in its config",
    "step3p5": "it has a base for each layer, in a list",
}


def in_language_model(config: dict[str, Any], change) -> dict[str, Any]:
    if isinstance(config.get("text_config"), dict):
        config = config | {"text_config": in_language_model(config["text_config"], change)}
    return change(dict(config))


def with_other_bases(config: dict[str, Any]) -> dict[str, Any]:
    factors = dict.fromkeys(BASES, 1.7) | dict.fromkeys(LOCAL_BASES, 1.3)
    return config | {key: config[key] * f for key, f in factors.items() if config.get(key)}


def as_transformers_5_writes(config: dict[str, Any]) -> dict[str, Any]:
    bases = [config.pop(key) for key in BASES if config.get(key)]
    local = [config.pop(key) for key in LOCAL_BASES if key in config]
    if not bases:
        return config
    scaling = config.pop("rope_scaling", None) or {}
    rope = {key: value for key, value in scaling.items() if key != "type"}
    rope |= {"rope_theta": bases[0], "rope_type": rope.get("rope_type") or scaling.get("type")}
    rope["rope_type"] = rope["rope_type"] or "default"
    shares = [config.pop(key) for key in SHARES if key in config]
    share = {"partial_rotary_factor": shares[-1]} if shares else {}
    rope |= share
    if local:
        plain = {"rope_type": "default", "rope_theta": local[0]} | share
        return config | {"rope_parameters": {"full_attention": rope, "sliding_attention": plain}}
    return config | {"rope_parameters": rope}


REWRITTEN = [
    family
    for family in FAMILIES
    if in_language_model(config_of(family), as_transformers_5_writes) != config_of(family)
    and "rope_parameters" not in str(config_of(family))
    and family not in UNLIKE
]


@pytest.mark.parametrize("family", REWRITTEN)
def test_a_family_gets_the_same_rotary_embeddings_in_either_spelling_or_is_refused(family):
    older = in_language_model(config_of(family), with_other_bases)
    newer = in_language_model(older, as_transformers_5_writes)
    assert newer != older
    if family in FIXED_BASE:
        with pytest.raises(UnsupportedModelError, match="rope_theta"):
            require_ropes_read(older, MlxLm())
        with pytest.raises(UnsupportedModelError, match="rope_parameters"):
            require_ropes_read(newer, MlxLm())
        return
    require_ropes_read(older, MlxLm())
    require_ropes_read(newer, MlxLm())
    wanted = _constants(MlxLm().build(older))
    got = _constants(MlxLm().build(as_mlx_lm_reads(newer)))
    assert wanted.keys() == got.keys()
    assert [key for key in wanted if not _equal(wanted[key], got[key])] == []


@pytest.mark.parametrize("family", ["llama", "qwen2", "mixtral"])
def test_stock_mlx_lm_takes_another_base_for_the_newer_spelling(family):
    """Else this project would not have to rewrite it."""
    older = in_language_model(config_of(family), with_other_bases)
    newer = in_language_model(older, as_transformers_5_writes)
    right = _constants(MlxLm().build(older))
    try:
        stock = _constants(MlxLm().build(newer))
    except TypeError:  # it insists on the older spelling
        return
    assert [key for key in right if not _equal(right[key], stock.get(key))]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_is_refused_as_its_own_authors_write_it(family):
    require_ropes_read(config_of(family), MlxLm())


def test_a_factor_that_a_module_does_not_know_is_refused_by_name():
    config = config_of("gemma") | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    with pytest.raises(UnsupportedModelError, match=r"'rope_scaling\.factor': 8.*'gemma'"):
        require_ropes_read(config, MlxLm())


def test_a_base_that_is_the_modules_default_need_not_be_read():
    require_ropes_read(config_of("recurrent_gemma") | {"rope_theta": 10000.0}, MlxLm())


def test_a_base_in_a_field_that_the_module_does_not_read_is_refused():
    config = config_of("qwen3_5-tied")
    del config["rope_parameters"]
    with pytest.raises(UnsupportedModelError, match="'rope_theta': 500000"):
        require_ropes_read(config | {"rope_theta": 5e5}, MlxLm())


def test_a_model_without_rotary_embeddings_may_have_their_settings():
    require_ropes_read(config_of("mamba2") | {"rope_theta": 5e5}, MlxLm())
