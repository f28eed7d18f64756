"""Models that appear on the local Hub, at times that a test decides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from local_hub import LocalHub
from tests.hub.conftest import safetensors_bytes

__all__ = ["add_dynquant", "add_model", "edit_card", "model_files", "new_weights", "stamp"]

_ROW = 1_000_000


def stamp(at: datetime) -> str:
    """A time as the Hub writes it."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def weights(num_parameters: int, seed: str) -> bytes:
    """A file whose header declares that number of parameters."""
    content = hashlib.sha256(seed.encode()).digest()
    return safetensors_bytes({"w": ("BF16", [num_parameters // _ROW, _ROW], content)})


def card(**fields: Any) -> bytes:
    shown = {"license": "apache-2.0", "pipeline_tag": "text-generation"} | fields
    kept = {name: value for name, value in shown.items() if value is not None}
    # JSON is YAML too.
    return f"---\n{json.dumps(kept)}\n---\n# A model\n".encode()


def model_files(
    num_parameters: int = 8 * 10**9,
    *,
    seed: str = "",
    config: Mapping[str, Any] | None = None,
    **fields: Any,
) -> dict[str, bytes]:
    """The files of a model; `fields` are those of its card, None leaves one out."""
    return {
        "config.json": json.dumps(
            {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]} | dict(config or {})
        ).encode(),
        "model.safetensors": weights(num_parameters, seed),
        "README.md": card(**fields),
    }


def add_model(
    hub: LocalHub, repo_id: str, at: datetime, files: Mapping[str, bytes] | None = None, **more: Any
) -> None:
    """A model that was uploaded in one go."""
    content = model_files(seed=repo_id) if files is None else files
    hub.add(repo_id, content, created_at=stamp(at), last_modified=stamp(at), **more)


def edit_card(hub: LocalHub, repo_id: str, at: datetime, text: str = "More words.") -> None:
    repo = hub.repos["model", repo_id]
    repo.commit({"README.md": card() + text.encode()}, title="Card", date=stamp(at))


def new_weights(hub: LocalHub, repo_id: str, at: datetime, *, seed: str) -> None:
    repo = hub.repos["model", repo_id]
    content = weights(8 * 10**9, seed)
    repo.commit({"model.safetensors": content}, title="Weights", date=stamp(at))


def add_dynquant(
    hub: LocalHub, repo_id: str, source: str, *, sha: str, at: datetime | None = None
) -> None:
    """A repo of dynquant, with the parts that the watcher reads."""
    metadata = {
        "tags": ["mlx", "dynquant"],
        "base_model": source,
        "base_model_relation": "quantized",
    }
    plan = {"source": source, "revision_sha": sha}
    when = stamp(at or datetime(2026, 1, 1, tzinfo=UTC) - timedelta(days=1))
    hub.add(
        repo_id,
        {"README.md": card(**metadata), "dynquant/plan.json": json.dumps(plan).encode()},
        created_at=when,
        last_modified=when,
    )
