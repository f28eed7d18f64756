from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import compute_bits_per_weight, load_model

from dynquant.errors import VerificationError
from dynquant.quant.mlx import stock_run
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.quant.mlx.verify import verify_folder
from dynquant.sandbox import confined
from tests.quant.mlx.factories import save_model

MACHINE = (str(Path(__file__).parents[2]), "site-packages", "/home", "/root", "/Users")


def refused(folder: Path, *, stored_bpw: float = 16.0) -> str:
    with pytest.raises(VerificationError) as raised:
        verify_folder(folder, stored_bpw=stored_bpw)
    sentence = str(raised.value)
    for part in (*MACHINE, str(folder), str(folder.parent)):
        assert part not in sentence
    return sentence


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("verify") / "model")


def test_a_sound_folder_generates_in_a_process_of_its_own(sound):
    model, _ = load_model(sound)
    found = verify_folder(sound, stored_bpw=compute_bits_per_weight(model))
    assert found.sample.startswith("The")
    assert found.runtimes == ("mlx-lm",)
    assert not found.saw_image


def test_a_sound_folder_is_timed_on_a_prompt(sound):
    model, _ = load_model(sound)
    bpw = compute_bits_per_weight(model)
    found = verify_folder(sound, stored_bpw=bpw, text=[i % 99 for i in range(100)]).speed
    assert found is not None
    assert found.prompt_tokens == 100
    assert found.machine.startswith(str(mx.device_info()["device_name"]))
    assert verify_folder(sound, stored_bpw=bpw).speed is None


def test_unquantized_experts_run_on_a_cpu_too(tmp_path):
    folder = save_model(tmp_path / "experts", "qwen3_moe")
    model, _ = load_model(folder)
    found = verify_folder(folder, stored_bpw=compute_bits_per_weight(model))
    assert found.sample.startswith("The")


def test_another_size_than_planned_is_refused(sound):
    model, _ = load_model(sound)
    actual = compute_bits_per_weight(model)
    sentence = refused(sound, stored_bpw=actual - 0.001)
    assert f"{actual:.6f}" in sentence
    assert f"{actual - 0.001:.6f}" in sentence


def broken(folder: Path, *, file: str, content: bytes | None) -> Path:
    save_model(folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", None),
        ("model.safetensors", b"\x00" * 100),
        ("tokenizer.json", b"{"),
    ],
    ids=["no config", "corrupt weights", "corrupt tokenizer"],
)
def test_a_broken_folder_is_refused_without_a_path_of_this_machine(tmp_path, file, content):
    sentence = refused(broken(tmp_path / "model", file=file, content=content))
    assert sentence.startswith("The written model does not load or run in stock mlx-lm: ")


def test_a_folder_whose_settings_do_not_match_its_arrays_is_refused(tmp_path):
    folder = save_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"group_size": 64, "bits": 4, "mode": "affine"}
    config["num_hidden_layers"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    assert "does not load or run" in refused(folder)


WINDOWS = [[1], [5, 6, 7], list(range(30))]


def logits_of(folder: Path, windows) -> list[np.ndarray]:
    model, _ = load_model(folder)
    model.set_dtype(mx.float32)
    return [np.asarray(model(mx.array([ids]))[0]) for ids in windows]


def bpw_of(folder: Path) -> float:
    return float(compute_bits_per_weight(load_model(folder)[0]))


def planned_from(folder: Path):
    return lambda windows: logits_of(folder, windows)


def loaded(file: Path) -> dict[str, mx.array]:
    return cast("dict[str, mx.array]", mx.load(str(file)))


def change_weights(folder: Path, change) -> Path:
    file = folder / "model.safetensors"
    weights = {name: change(name, array) for name, array in loaded(file).items()}
    mx.eval(list(weights.values()))
    mx.save_safetensors(str(file), weights, metadata={"format": "mlx"})
    return folder


def test_a_folder_that_computes_what_was_planned_passes(sound):
    found = verify_folder(
        sound,
        stored_bpw=bpw_of(sound),
        windows=WINDOWS,
        planned=planned_from(sound),
        original=planned_from(sound),
    )
    assert found.sample.startswith("The")


def test_a_folder_that_computes_another_model_is_refused(sound, tmp_path):
    other = change_weights(
        save_model(tmp_path / "other"),
        lambda name, array: array * 1.5 if "up_proj" in name else array,
    )
    with pytest.raises(VerificationError, match="computes something else than was planned"):
        verify_folder(other, stored_bpw=bpw_of(other), windows=WINDOWS, planned=planned_from(sound))


def test_nan_in_stock_mlx_lm_is_refused_whatever_was_planned(tmp_path):
    broken = change_weights(
        save_model(tmp_path / "model"),
        lambda name, array: array * float("nan") if name.endswith("norm.weight") else array,
    )
    with pytest.raises(VerificationError, match="NaN or infinity"):
        verify_folder(broken, stored_bpw=bpw_of(broken), windows=WINDOWS)


def test_a_model_that_overflows_in_its_own_dtype_alone_is_refused(tmp_path):
    def overflow(name: str, array: mx.array) -> mx.array:
        factor = 3e4 if "up_proj" in name else 1e-4 if "down_proj" in name else 1.0
        return (array.astype(mx.float32) * factor).astype(array.dtype)

    folder = change_weights(save_model(tmp_path / "model", dtype=mx.float16), overflow)
    assert all(np.isfinite(each).all() for each in logits_of(folder, WINDOWS))
    with pytest.raises(VerificationError, match="NaN or infinity"):
        verify_folder(
            folder, stored_bpw=bpw_of(folder), windows=WINDOWS, planned=planned_from(folder)
        )


def always(token: int, folder: Path) -> Path:
    """A model whose head answers every input with `token`."""

    def one_answer(name: str, array: mx.array) -> mx.array:
        if name == "model.norm.weight":
            return mx.zeros_like(array)
        return array

    change_weights(folder, one_answer)  # all logits are equal, so the first token wins
    assert token == 0
    return folder


def test_one_token_for_ever_is_refused_unless_the_original_does_the_same(sound, tmp_path):
    dead = always(0, save_model(tmp_path / "model"))
    with pytest.raises(VerificationError, match="repeats one token"):
        verify_folder(
            dead,
            stored_bpw=bpw_of(dead),
            windows=WINDOWS,
            planned=planned_from(dead),
            original=planned_from(sound),
        )
    verify_folder(dead, stored_bpw=bpw_of(dead), windows=WINDOWS, original=planned_from(dead))


@pytest.mark.harden("child and runner")
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is Linux's")
def test_what_verifies_shares_no_compiled_code_with_whoever_asks(
    sound, tmp_path, monkeypatch, harden
):
    """MLX loads libraries from the folder for temporary files, and it could put some there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plant = """
import json, os, sys
import numpy as np
try:
    open(sys.argv[1] + "/planted.so", "w")
except OSError: pass
facts = {"stored_bpw": 16.0, "text": os.environ["TMPDIR"], "prompt": [], "generated": []}
facts = json.dumps(facts | {"has_computed": False, "has_own": False}).encode()
np.savez(sys.stdout.buffer, facts=np.frombuffer(facts, dtype=np.uint8))
"""
    command = [sys.executable, "-c", plant, str(tmp_path)]
    monkeypatch.setattr(stock_run, "confined", lambda _, **terms: confined(command, **terms))
    temporary = Path(verify_folder(sound, stored_bpw=16.0).sample)
    assert temporary.parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    harden("refused")


@pytest.mark.harden("child and runner")
def test_processes_on_one_model_keep_what_they_compiled_for_each_other(
    sound, tmp_path, monkeypatch
):
    """On a GPU the kernels of a format take up to a minute."""
    keep = """
import json, os, sys
from pathlib import Path
import numpy as np
kept = Path.home() / "compiled"
facts = {"stored_bpw": 16.0, "text": str(kept.exists()), "prompt": [], "generated": []}
kept.write_text("a kernel")
facts = json.dumps(facts | {"has_computed": False, "has_own": False}).encode()
np.savez(sys.stdout.buffer, facts=np.frombuffer(facts, dtype=np.uint8))
"""
    command = [sys.executable, "-c", keep]
    monkeypatch.setattr(stock_run, "confined", lambda _, **terms: confined(command, **terms))
    found = [
        verify_folder(sound, stored_bpw=16.0, home=home) for home in (tmp_path, tmp_path, None)
    ]
    assert [each.sample for each in found] == ["False", "True", "False"]


def test_what_was_compiled_goes_with_the_quantizer(sound):
    quantizer = MlxQuantizer(sound, name="model")
    home = quantizer._stock_home
    assert home.is_dir()
    del quantizer
    gc.collect()
    assert not home.exists()
