from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from dynquant.quant.header_inventory import header_inventory, is_known_family, known_families
from tests.fakes import make_source
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


def test_helpers_of_mlx_lm_and_what_nobody_has_heard_of_are_no_families():
    assert is_known_family("mistral")  # by another name
    for name in ("base", "cache", "switch_layers", "no_such_family", "", "../utils"):
        assert not is_known_family(name)


def test_where_mlx_lm_is_not_installed_nothing_speaks_against_a_family(monkeypatch):
    known_families.cache_clear()
    try:
        with monkeypatch.context() as patch:
            patch.setattr("dynquant.quant.header_inventory.find_spec", lambda _: None)
            assert known_families() is None
            assert is_known_family("no_such_family")
    finally:
        known_families.cache_clear()


def write_header(file: Path, **shapes: list[int]) -> None:
    entries = {name: {"dtype": "F32", "shape": shape} for name, shape in shapes.items()}
    raw = json.dumps(entries).encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw)


def test_a_second_copy_of_the_weights_is_not_counted(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    index = {"weight_map": {"a": "model-1.safetensors", "mtp": "mtp.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for name in ("model-1.safetensors", "model.safetensors"):
        write_header(tmp_path / name, a=[4, 32])
    write_header(tmp_path / "mtp.safetensors", mtp=[4, 32])
    inventory = header_inventory(make_source(folder=tmp_path)).inventory
    assert [layer.path for layer in inventory.layers] == ["a"]
    assert inventory.num_parameters == 4 * 32
