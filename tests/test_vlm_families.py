"""Every family of mlx-vlm that generates text can be built tiny, loads again and runs."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("mlx_vlm")

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_vlm.utils import load_model

from dynquant.quant.mlx.arrays import scalar
from tests.vlm_families import (
    EXCLUDED,
    FAMILIES,
    NO_IMAGE,
    NO_TEXT,
    all_model_packages,
    build,
    image_inputs,
    logits_of,
    package_of,
    save,
    text_inputs,
)

#: Upper bounds of a model's parameters and of its file, in bytes.
_MAX_PARAMETERS = 3_000_000
_MAX_BYTES = 10_000_000


def _equal(built: mx.array, loaded: mx.array) -> bool:
    """Return whether a float32 array came back, rounded to bfloat16 unless sanitize makes it."""
    if not mx.issubdtype(built.dtype, mx.floating):
        return bool(mx.array_equal(built, loaded).item())
    rounded = built.astype(mx.bfloat16).astype(loaded.dtype)
    return bool((mx.array_equal(rounded, loaded) | mx.array_equal(built, loaded)).item())


def test_the_table_covers_every_package_with_images_or_sound() -> None:
    packages = [package_of(family_id) for family_id in FAMILIES]
    assert not set(packages) & set(EXCLUDED)
    assert sorted({*packages, *EXCLUDED}) == all_model_packages()


def test_every_exception_names_a_family() -> None:
    assert set(NO_IMAGE) | set(NO_TEXT) <= set(FAMILIES)


@pytest.mark.parametrize("family_id", FAMILIES)
def test_a_saved_family_is_loaded_back_with_equal_weights(family_id: str, tmp_path: Path) -> None:
    built = dict(tree_flatten(build(family_id)[0].parameters()))
    folder = save(family_id, tmp_path / "model")
    loaded = dict(tree_flatten(load_model(folder, lazy=True).parameters()))
    assert loaded.keys() == built.keys()
    assert [name for name in built if not _equal(built[name], loaded[name])] == []
    assert sum(value.size for value in built.values()) < _MAX_PARAMETERS
    assert (folder / "model.safetensors").stat().st_size < _MAX_BYTES


@pytest.mark.parametrize("family_id", [name for name in FAMILIES if name not in NO_TEXT])
def test_logits_of_text_are_finite_and_differ_between_tokens(family_id: str) -> None:
    model, _ = build(family_id)
    logits = logits_of(model, text_inputs(family_id, mx.array([[5, 6, 7, 8, 9, 10]])))
    assert logits.shape[:2] == (1, 6)
    assert mx.all(mx.isfinite(logits)).item()
    assert scalar(mx.max(mx.abs(logits[0, 1:] - logits[0, :1]))) > 1e-3


@pytest.mark.parametrize("family_id", [name for name in FAMILIES if name not in NO_IMAGE])
def test_logits_after_an_image_are_finite_and_depend_on_the_image(family_id: str) -> None:
    last = []
    for image in range(2):
        model, _ = build(family_id)  # Some models keep state between calls.
        inputs = image_inputs(family_id, image=image)
        assert inputs is not None
        logits = logits_of(model, inputs)
        assert mx.all(mx.isfinite(logits)).item()
        last.append(logits[0, -1])
    assert scalar(mx.max(mx.abs(last[0] - last[1]))) > 1e-3
