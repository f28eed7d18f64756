"""The common inputs of all conversions under faults, made once for all workers."""

from __future__ import annotations

import pytest
from huggingface_hub import constants

from tests.command_line import once
from tests.faults.conversions import Scene, make_scene


@pytest.fixture
def client(tmp_path, monkeypatch) -> None:
    """The Hub's client in this process: without account and xet, with short timeouts."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 1)


@pytest.fixture
def scene(tmp_path_factory, client) -> Scene:
    from tests.quant.mlx.factories import save_model

    return Scene(once(tmp_path_factory, "faults", lambda folder: make_scene(folder, save_model)))
