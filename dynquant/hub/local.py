"""Models in local folders, and the license and gate in a card's metadata."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from yaml import YAMLError

from dynquant.errors import InvalidModelError, InvalidOptionError, ModelNotFoundError
from dynquant.hub.local_files import LocalFile
from dynquant.model.originals import quantized_from_card
from dynquant.model.source import ModelSource

__all__ = ["gated_fields", "license_fields", "local_source", "require_readable"]

_LICENSE_FIELDS = ("license", "license_name", "license_link")
_GATED_PREFIX = "extra_gated_"
_MAX_CARD_BYTES = 5_000_000  # the largest cards of the Hub have a tenth
_MAX_EDITED_BYTES = 50_000_000
_COMMIT = re.compile(r"[0-9a-f]{40}")


def license_fields(card: Mapping[str, Any]) -> dict[str, str]:
    """The license fields of a card; a list of licenses is joined, other values are left out."""
    fields = {}
    for name in _LICENSE_FIELDS:
        value = card.get(name)
        if isinstance(value, list):
            value = ", ".join(each for each in value if isinstance(each, str))
        if isinstance(value, str) and value:
            fields[name] = value
    return fields


def gated_fields(card: Mapping[str, Any]) -> dict[str, object]:
    """The form of a gated repo: its `extra_gated_*` fields."""
    return {name: value for name, value in card.items() if name.startswith(_GATED_PREFIX)}


def _front_matter(readme: Path) -> Mapping[str, Any]:
    """The metadata of a card; empty if it cannot be read or is too large.

    A few bytes of YAML can expand to billions, by aliases of aliases.
    """
    try:
        if readme.stat().st_size > _MAX_CARD_BYTES:
            return {}
        found = metadata_load(readme) or {}
        json.dump(found, _Counter(_MAX_CARD_BYTES), default=str)
    except (OSError, ValueError, TypeError, YAMLError, RecursionError):
        return {}
    return found


class _Counter(io.TextIOBase):
    """A stream that counts characters and raises ValueError above a bound."""

    def __init__(self, num_chars: int) -> None:
        self._left = num_chars

    def write(self, text: str) -> int:
        """Count `text`."""
        self._left -= len(text)
        if self._left < 0:
            raise ValueError("too long")
        return len(text)


def local_source(
    model: str, revision: str | None, *, cache_dir: Path | None = None
) -> ModelSource | None:
    """The model in a local folder; None if `model` is the id of a repo.

    A folder that huggingface_hub made for one commit of a repo is named after the repo. Its commit
    is trusted only if it is in the cache in use, as such a folder can be forged elsewhere. Only the
    Hub knows the visibility of that repo, so it counts as private for now.

    Args:
        model: Folder or repo id.
        revision: The requested revision.
        cache_dir: The cache in use.

    Raises:
        ModelNotFoundError: It is a path, but not of a model's folder.
        InvalidModelError: A file in it may not be read.
        InvalidOptionError: A revision of a local folder.
    """
    folder = _expanded(model)
    # `Path.is_dir` raises an error if the name is too long.
    if not model.strip() or not os.path.isdir(folder):  # noqa: PTH112
        if (complaint := _complaint_about_path(model, folder)) is not None:
            raise ModelNotFoundError(complaint)
        return None
    require_readable(folder)
    if (repo := _cached_repo(folder.resolve())) is not None:
        raise ModelNotFoundError(
            f"'{model}' is the cache of '{repo}' with all its commits. Pass '{repo}', or the "
            "folder of one commit below 'snapshots'."
        )
    if revision:
        raise InvalidOptionError(
            f"'{model}' is a local folder, and only models on the Hub have revisions. "
            "Leave the revision out."
        )
    readme = folder / "README.md"
    card = _front_matter(readme) if readme.is_file() else {}
    repo, sha = _snapshot(folder.resolve(), cache_dir)
    return ModelSource(
        name=repo or _name(folder),
        folder=folder,
        is_repo=bool(sha),
        revision_sha=sha,
        license_fields=license_fields(card),
        gated_fields=gated_fields(card),
        is_private=bool(sha),
        quantized_from=quantized_from_card(card),
    )


def require_readable(folder: Path) -> None:
    """Refuse a folder with files that may not be read, before hours of work.

    Raises:
        ModelNotFoundError: The folder itself may not be read.
        InvalidModelError: Names the file.
    """
    if folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK):
        raise ModelNotFoundError(
            f"The folder '{folder}' may not be read. Change its permissions, or pass another "
            "folder."
        )
    for path in folder.glob("*"):
        if path.is_file() and not os.access(path, os.R_OK):
            raise InvalidModelError(
                f"'{path.name}' in the folder of the model may not be read. Change its permissions."
            )


def _name(folder: Path) -> str:
    name = folder.name if folder.name not in {"", ".."} else folder.resolve().name
    return name or "model"


def _cached_repo(folder: Path) -> str | None:
    """The repo whose files huggingface_hub keeps in `folder`, as `models--org--name`."""
    kind, *parts = folder.name.split("--")
    if kind != "models" or len(parts) not in {1, 2} or not (folder / "snapshots").is_dir():
        return None
    repo = "/".join(parts)
    try:
        validate_repo_id(repo)
    except HFValidationError:
        return None
    return repo


def _snapshot(folder: Path, cache_dir: Path | None) -> tuple[str | None, str]:
    """Repo and commit of a snapshot folder; without the commit if it cannot be trusted."""
    if folder.parent.name != "snapshots":
        return None, ""
    repo_folder = folder.parents[1]
    repo = _cached_repo(repo_folder)
    is_certain = (
        repo is not None
        and cache_dir is not None
        and repo_folder.parent == cache_dir.resolve()
        and _COMMIT.fullmatch(folder.name) is not None
        and all(_is_blob(path, repo_folder / "blobs") for path in folder.iterdir())
    )
    return repo, folder.name if is_certain else ""


def _is_blob(path: Path, blobs: Path) -> bool:
    """Whether a file of a snapshot is a link to the blob with its hash."""
    if path.is_dir():
        return all(_is_blob(each, blobs) for each in path.iterdir())
    blob = path.resolve()
    if not path.is_symlink() or blob.parent != blobs or not blob.is_file():
        return False
    file = LocalFile(path=blob, num_bytes=blob.stat().st_size)
    # Small files may have been edited by hand, and hashing them is fast; weights are not edited.
    return file.num_bytes > _MAX_EDITED_BYTES or file.is_called(blob.name)


def _complaint_about_path(model: str, path: Path) -> str | None:
    """Why this is neither a folder nor an id of a repo; None if it may be an id."""
    if "://" in model:
        return (
            f"'{model}' is a web address. Pass the id of the model alone, such as "
            "'Qwen/Qwen3-0.6B'."
        )
    if os.path.isfile(path):  # noqa: PTH113
        return (
            f"'{model}' is a file. Pass the folder that holds config.json and the safetensors "
            "files."
        )
    if (
        not model.strip()
        or model.startswith((".", "/", "~"))
        or "\\" in model
        or model.count("/") > 1
    ):
        return (
            f"There is no folder '{model}'. Pass a folder that holds config.json and safetensors "
            "files, or a Hub id such as 'Qwen/Qwen3-0.6B'."
        )
    return None


def _expanded(path: str) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:  # `~someone` without a home here
        return Path(path)
