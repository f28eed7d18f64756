from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dynquant.quant.families import is_known_family, keeps_tower, known_families, seeing_families
from tests.waiting import PATIENCE_SECS

_ASK_MLX_LM = """
import json, pkgutil, sys
import dynquant.quant.mlx
from mlx_lm import models
from mlx_lm.utils import MODEL_REMAPPING, _get_classes

def runs(family):
    try:
        _get_classes({"model_type": family})
    except (ValueError, AttributeError):
        return False
    except SystemExit:  # olmo asks for a package of its own
        return True
    return True

names = {each.name for each in pkgutil.iter_modules(models.__path__)} | set(MODEL_REMAPPING)
json.dump(sorted(filter(runs, names)), sys.stdout)
"""


def test_the_families_that_are_known_are_those_that_mlx_lm_itself_runs():
    asked = subprocess.run(
        [sys.executable, "-c", _ASK_MLX_LM],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECS,
    )
    assert sorted(known_families() or ()) == json.loads(asked.stdout.splitlines()[-1])


def test_helpers_of_mlx_lm_and_unknown_names_are_no_families():
    assert is_known_family("mistral")  # by another name
    for name in ("base", "cache", "switch_layers", "no_such_family", "", "../utils"):
        assert not is_known_family(name)


def test_where_mlx_lm_is_not_installed_every_family_is_accepted(monkeypatch):
    known_families.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr("dynquant.quant.families.find_spec", lambda _: None)
            assert known_families() is None
            assert is_known_family("no_such_family")
    finally:
        known_families.cache_clear()


def test_families_with_a_tower_are_those_of_mlx_vlm():
    pytest.importorskip("mlx_vlm")
    for name in ("qwen3_vl", "gemma3", "llava", "mistral3", "llava_qwen2"):  # the last: FastVLM
        assert keeps_tower(name)
        assert is_known_family(name)
    for name in ("llama", "bert", "cache", "no_such_family"):
        assert not keeps_tower(name)


@pytest.fixture
def without_mlx_vlm(monkeypatch):
    seeing_families.cache_clear()
    found = {"mlx_lm": object()}
    with monkeypatch.context() as patch:
        patch.setattr("dynquant.quant.families._folder", found.get)
        patch.setattr("dynquant.quant.families.known_families", lambda: frozenset({"gemma3"}))
        yield
    seeing_families.cache_clear()


def test_where_only_mlx_lm_is_installed_no_tower_is_kept(without_mlx_vlm):
    assert not keeps_tower("gemma3")
    assert is_known_family("gemma3")
    assert not is_known_family("idefics3")
