"""Models and rules that match by default."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from dynquant.model.candidate import Candidate
from dynquant.watch.config import Rule, WatchConfig

__all__ = ["NOW", "make_candidate", "make_config", "make_rule"]

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)


def make_candidate(repo_id: str = "org/Model-8B", **overrides: Any) -> Candidate:
    """A model with full metadata that the default rule takes."""
    fields: dict[str, Any] = {
        "sha": "a" * 40,
        "author": repo_id.split("/", maxsplit=1)[0],
        "created_at": NOW - timedelta(hours=2),
        "last_modified": NOW - timedelta(hours=1),
        "tags": ("safetensors", "qwen3", "license:apache-2.0"),
        "pipeline_tag": "text-generation",
        "library": "transformers",
        "model_type": "qwen3",
        "architectures": ("Qwen3ForCausalLM",),
        "num_parameters": 8 * 10**9,
        "files": ("config.json", "model.safetensors"),
        "weights": ("model.safetensors",),
        "fingerprint": "f" * 64,
    }
    return Candidate(repo_id=repo_id, **fields | overrides)


def make_rule(name: str = "all", **overrides: Any) -> Rule:
    fields: dict[str, Any] = {"destination": "you", "bpw": (4.5,)}
    return Rule(name=name, **fields | overrides)


def make_config(*rules: Rule, **overrides: Any) -> WatchConfig:
    return WatchConfig(rules=rules or (make_rule(),), **overrides)
