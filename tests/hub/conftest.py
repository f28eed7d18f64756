"""A local Hub, and a client without this machine's token and cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from dynquant.hub import HubDatasets, HubModels
from local_hub import LocalHub

SAMPLE = Path(__file__).parents[3] / "shared" / "models" / "sample-2m"
TINY = Path(__file__).parents[3] / "shared" / "models" / "tiny-qwen3"
LICENSE_CARD = "---\nlicense: other\nlicense_name: nice\nlicense_link: https://x.org/l\n---\n# Hi\n"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "hf-home"
    with LocalHub() as hub:
        # Read at import: the environment has no effect if another test imported it before.
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(home / "harnesses.json"))
        yield hub
        close_session()


@pytest.fixture
def pauses() -> list[float]:
    """The requested pauses between tries, which are skipped."""
    return []


@pytest.fixture
def models(hub: LocalHub, tmp_path: Path, pauses: list[float]) -> Iterator[HubModels]:
    with HubModels(
        endpoint=hub.url, cache_dir=tmp_path / "hf-home" / "hub", sleep=pauses.append
    ) as models:
        yield models


@pytest.fixture
def datasets(hub: LocalHub, pauses: list[float]) -> HubDatasets:
    return HubDatasets(endpoint=hub.url, sleep=pauses.append)


def safetensors_bytes(tensors: dict[str, tuple[str, list[int], bytes]], pad: int = 8) -> bytes:
    """A safetensors file: name → (dtype, shape, content)."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + len(content)]}
        end += len(content)
    encoded = json.dumps(header).encode()
    encoded = encoded.ljust(-(-len(encoded) // pad) * pad)
    data = b"".join(content for _, _, content in tensors.values())
    return len(encoded).to_bytes(8, "little") + encoded + data


def tiny_files(**overrides: bytes | None) -> dict[str, bytes]:
    """The files of a repo that looks like a model; a value of None leaves a file out."""
    weights = {"a.weight": ("F32", [2, 3], bytes(range(24))), "b.weight": ("BF16", [2], b"abcd")}
    files: dict[str, bytes | None] = {
        "config.json": b'{"model_type": "qwen3"}',
        "tokenizer.json": b"{}",
        "model.safetensors": safetensors_bytes(weights),
        "README.md": LICENSE_CARD.encode(),
        "LICENSE.txt": b"Do as you like.",
    }
    files |= overrides
    return {name: content for name, content in files.items() if content is not None}
