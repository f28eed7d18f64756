"""Fixtures of the tests of quant/mlx; imported first, so that OpenBLAS is loaded before MLX."""

from __future__ import annotations

from pathlib import Path

import pytest

import dynquant.quant.mlx
from tests.quant.mlx.factories import SHARED, TinyModel, make_model, open_tiny, save_model

assert dynquant.quant.mlx.__all__  # imported for its side effect


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with trained models and texts, beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"no '{SHARED.name}' folder with models and texts beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def tiny_qwen3(shared) -> TinyModel:
    return open_tiny(shared / "models" / "tiny-qwen3")


@pytest.fixture(scope="session")
def tiny_moe(shared) -> TinyModel:
    return open_tiny(shared / "models" / "tiny-qwen3-moe")


@pytest.fixture(scope="module")
def tied() -> TinyModel:
    """Three blocks and a tied embedding, random, float32."""
    return make_model(tie_word_embeddings=True)


@pytest.fixture(scope="module")
def experts() -> TinyModel:
    """Two blocks with four experts each, random, float32."""
    return make_model(family="qwen3_moe")


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """A whole model folder with a tokenizer, bfloat16, one shard."""
    return save_model(tmp_path / "model")
