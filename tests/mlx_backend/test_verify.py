from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
from mlx_lm.utils import compute_bits_per_weight, load_model

from dynquant.confine import confined
from dynquant.errors import VerificationError
from dynquant.mlx_backend import verify
from dynquant.mlx_backend.verify import verify_folder
from tests.mlx_backend.factories import save_model

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
    text = verify_folder(sound, stored_bpw=compute_bits_per_weight(model))
    assert text.startswith("The")


def test_unquantized_experts_run_on_a_cpu_too(tmp_path):
    folder = save_model(tmp_path / "experts", "qwen3_moe")
    model, _ = load_model(folder)
    assert verify_folder(folder, stored_bpw=compute_bits_per_weight(model)).startswith("The")


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
    assert sentence.startswith("Stock mlx-lm cannot load or run the written model: ")


def test_a_folder_whose_settings_do_not_match_its_arrays_is_refused(tmp_path):
    folder = save_model(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"group_size": 64, "bits": 4, "mode": "affine"}
    config["num_hidden_layers"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    assert "cannot load or run" in refused(folder)


@pytest.mark.harden("child and runner")
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is Linux's")
def test_what_verifies_shares_no_compiled_code_with_whoever_asks(
    sound, tmp_path, monkeypatch, harden
):
    """MLX loads libraries from the folder for temporary files, and it could put some there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    plant = (
        "import json, os, sys\n"
        "try:\n"
        "    open(sys.argv[1] + '/planted.so', 'w')\n"
        "except OSError: pass\n"
        "print(json.dumps({'stored_bpw': 16.0, 'text': os.environ['TMPDIR']}))"
    )
    command = [sys.executable, "-c", plant, str(tmp_path)]
    monkeypatch.setattr(verify, "confined", lambda _, **terms: confined(command, **terms))
    temporary = Path(verify_folder(sound, stored_bpw=16.0))
    assert temporary.parent == tmp_path
    assert list(tmp_path.iterdir()) == []
    harden("refused")
