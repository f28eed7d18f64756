"""How the local Hub describes repos and files in JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from local_hub.cards import count_parameters, metadata
from local_hub.repos import Blob, Commit, Repo

BRIEF = (
    "likes",
    "trendingScore",
    "private",
    "downloads",
    "tags",
    "pipeline_tag",
    "library_name",
    "createdAt",
    "sdk",
)
FULL = (*BRIEF, "author", "sha", "lastModified", "gated", "disabled", "siblings")
INFO = (*FULL, "cardData", "config", "safetensors", "usedStorage", "model-index")


def describe(repo: Repo, commit: Commit | None, names: Iterable[str]) -> dict[str, Any]:
    """The record of a repo with the named fields, as far as they have a value."""
    record: dict[str, Any] = {"_id": repo.hub_id or repo.id, "id": repo.id}
    if repo.kind == "model":
        record["modelId"] = repo.id
    for name in names:
        value = FIELDS[name](repo, commit)
        if value is not None:
            record[name] = value
    return record


def gating(repo: Repo) -> str | bool:
    return "manual" if repo.gated is True else repo.gated


def siblings(commit: Commit | None, *, with_blobs: bool = False) -> list[dict[str, Any]]:
    files = sorted(commit.files.items()) if commit else []
    if not with_blobs:
        return [{"rfilename": name} for name, _ in files]
    return [{"rfilename": name} | _blob_record(blob) for name, blob in files]


def _blob_record(blob: Blob) -> dict[str, Any]:
    record: dict[str, Any] = {"size": blob.size, "blobId": blob.git_sha1}
    if blob.lfs:
        record["lfs"] = {
            "size": blob.size,
            "sha256": blob.sha256,
            "pointerSize": blob.pointer_size,
        }
    return record


def file_record(name: str, blob: Blob) -> dict[str, Any]:
    """A file as trees have it."""
    item: dict[str, Any] = {"type": "file", "path": name, "size": blob.size, "oid": blob.git_sha1}
    if blob.lfs:
        item["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
    return item


def commit_record(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.sha,
        "title": commit.title,
        "message": commit.description,
        "date": commit.date,
        "authors": [{"user": commit.author}],
    }


def page_path(repo: Repo) -> str:
    """Where people find it, and what stands before `/resolve/`."""
    return f"/{repo.id}" if repo.kind == "model" else f"/{repo.kind}s/{repo.id}"


FIELDS: dict[str, Callable[[Repo, Commit | None], Any]] = {
    "author": lambda repo, _: repo.namespace,
    "baseModels": lambda repo, _: _base_models(repo),
    "cardData": lambda repo, _: dict(metadata(repo).card) or None,
    "config": lambda repo, _: dict(metadata(repo).config) or None,
    "createdAt": lambda repo, _: repo.created_at,
    "disabled": lambda repo, _: repo.disabled,
    "downloads": lambda repo, _: repo.downloads,
    "downloadsAllTime": lambda repo, _: repo.downloads,
    "gated": lambda repo, _: gating(repo),
    "lastModified": lambda repo, _: repo.last_modified,
    "library_name": lambda repo, _: metadata(repo).library_name,
    "likes": lambda repo, _: repo.likes,
    "model-index": lambda repo, _: metadata(repo).card.get("model-index"),
    "pipeline_tag": lambda repo, _: metadata(repo).pipeline_tag,
    "private": lambda repo, _: repo.private,
    "safetensors": lambda repo, _: count_parameters(repo),
    "sdk": lambda repo, _: repo.sdk,
    "sha": lambda _, commit: commit.sha if commit else None,
    "siblings": lambda _, commit: siblings(commit),
    "tags": lambda repo, _: list(metadata(repo).tags),
    "trendingScore": lambda repo, _: repo.trending_score,
    "usedStorage": lambda repo, _: repo.num_stored_bytes,
}


def _base_models(repo: Repo) -> dict[str, Any] | None:
    card = metadata(repo).card
    bases = card.get("base_model")
    if not bases:
        return None
    return {
        "relation": card.get("base_model_relation", "finetune"),
        "models": [{"id": base} for base in (bases if isinstance(bases, list) else [bases])],
    }
