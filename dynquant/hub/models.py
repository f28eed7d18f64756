"""Models: a local folder, or a repo on the Hub at a pinned commit."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from huggingface_hub import HfApi, constants
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

from dynquant.errors import (
    InvalidModelError,
    ModelNotFoundError,
    StorageFullError,
    UnsupportedModelError,
)
from dynquant.hub.calls import NUM_DOWNLOAD_TRIES, TIMEOUT_SECS, HubCaller
from dynquant.hub.headers import read_header_bytes, write_ghost
from dynquant.hub.local import license_fields, local_source
from dynquant.ports import ModelSource

__all__ = ["HubModels"]

# What mlx-lm reads, and what a card and a license need. `*` also matches "/" here,
# so subfolders such as `original/` are shut out by a pattern of their own.
_NEEDED = (
    "*.json",
    "model*.safetensors",
    "tokenizer.model",
    "*.tiktoken",
    "*.txt",
    "*.jsonl",
    "*.jinja",
    "README.md",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
_NEVER = ("*/*", "*.py", "*.bin", "consolidated*")
_WEIGHTS = ("model*.safetensors",)

_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "model.safetensors.index.json",
    "README.md",
)
"""What planning reads besides the headers."""

_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_NUM_HEADER_THREADS = 8
_BYTES_PER_GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """A repo at one commit. `sizes` is file name → bytes; `etags` names its blobs in the cache."""

    repo: str
    sha: str
    sizes: Mapping[str, int]
    etags: Mapping[str, str]
    license_fields: Mapping[str, str]

    def only(self, allowed: Sequence[str]) -> list[str]:
        return sorted(
            filter_repo_objects(self.sizes, allow_patterns=[*allowed], ignore_patterns=[*_NEVER])
        )


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class HubModels:
    """Fetches models; a `dynquant.ports.ModelHub`.

    Use it as a context, or call `close`, to remove the folders that `fetch_headers` made;
    else they go when the process ends.

    Args:
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).
        token: None is the one that huggingface_hub finds, False is none at all.
        cache_dir: None is the cache of huggingface_hub (`HF_HOME`).
        free_bytes: Free space of the disk that holds a folder.
        sleep: Waits that many seconds between two tries.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        cache_dir: Path | None = None,
        free_bytes: Callable[[Path], int] = _free_bytes,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = HfApi(endpoint=endpoint, token=token, library_name="dynquant")
        self._cache_dir = cache_dir or Path(constants.HF_HUB_CACHE)
        self._free_bytes = free_bytes
        self._call = HubCaller(
            noun="model",
            refusal=ModelNotFoundError,
            page_prefix=f"{self._api.endpoint}/",
            sleep=sleep,
        )
        self._ghosts: dict[tuple[str, str], Path] = {}

    def __enter__(self) -> HubModels:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folders that `fetch_headers` made."""
        for folder in self._ghosts.values():
            shutil.rmtree(folder, ignore_errors=True)
        self._ghosts.clear()

    def fetch(self, model: str, *, revision: str | None = None) -> ModelSource:
        """The whole model in a local folder; downloads what is missing.

        Raises:
            ModelNotFoundError: No such folder, repo or revision, or no access to it.
            InvalidModelError: The repo lacks a config or weights.
            InvalidOptionError: A revision of a local folder.
            UnsupportedModelError: It has weights, and none that mlx-lm reads.
            HubUnavailableError: Network, rate limit, 5xx, or the client is set offline.
            StorageFullError: It would not fit on the disk of the cache.
        """
        if (local := local_source(model, revision)) is not None:
            return local
        listing = self._resolve(model, revision)
        self._require_disk(listing)
        folder = self._call(
            partial(
                self._api.snapshot_download,
                listing.repo,
                revision=listing.sha,
                cache_dir=self._cache_dir,
                allow_patterns=[*_NEEDED],
                ignore_patterns=[*_NEVER],
            ),
            repo=listing.repo,
            revision=listing.sha,
            num_tries=NUM_DOWNLOAD_TRIES,
        )
        return _hub_source(listing, Path(folder))

    def fetch_headers(self, model: str, *, revision: str | None = None) -> ModelSource:
        """The model with real headers and no weights: its safetensors files are sparse.

        Their sizes and headers are those of the real files and their data is a hole, so every
        check of a folder works, and whatever reads weights reads zeros. A local folder is
        returned as it is.

        Raises:
            ModelNotFoundError, InvalidModelError, InvalidOptionError, UnsupportedModelError,
            HubUnavailableError: As for `fetch`.
            StorageFullError: The folder for temporary files cannot be written.
        """
        if (local := local_source(model, revision)) is not None:
            return local
        listing = self._resolve(model, revision)
        key = (listing.repo, listing.sha)
        if key not in self._ghosts:
            self._ghosts[key] = self._make_ghost(listing)
        return _hub_source(listing, self._ghosts[key])

    def _resolve(self, model: str, revision: str | None) -> _Listing:
        """Pin the commit; refuse what its metadata already shows not to work."""
        info = self._call(
            lambda: self._api.model_info(
                model, revision=revision or None, files_metadata=True, timeout=TIMEOUT_SECS
            ),
            repo=model,
            revision=revision,
        )
        # The Hub follows renames and letter case: `info.id` is the name of today.
        if not info.sha:
            raise InvalidModelError(
                f"'{info.id}' has no commit on the Hub yet. Check that this is the repo you mean."
            )
        siblings = info.siblings or []
        card = info.card_data.to_dict() if info.card_data is not None else {}
        listing = _Listing(
            repo=info.id,
            sha=info.sha,
            sizes={each.rfilename: each.size or 0 for each in siblings},
            etags={
                each.rfilename: each.lfs.sha256 if each.lfs is not None else each.blob_id or ""
                for each in siblings
            },
            license_fields=license_fields(card),
        )
        _refuse_unusable(listing)
        self._download(listing, "config.json")  # where a gated repo says so
        return listing

    def _download(self, listing: _Listing, name: str) -> Path:
        path = self._call(
            partial(
                self._api.hf_hub_download,
                listing.repo,
                name,
                revision=listing.sha,
                cache_dir=self._cache_dir,
            ),
            repo=listing.repo,
            revision=listing.sha,
            num_tries=NUM_DOWNLOAD_TRIES,
        )
        return Path(path)

    def _require_disk(self, listing: _Listing) -> None:
        folder = self._cache_dir / repo_folder_name(repo_id=listing.repo, repo_type="model")
        num_bytes = sum(
            listing.sizes[name]
            for name in listing.only(_NEEDED)
            if not (listing.etags[name] and (folder / "blobs" / listing.etags[name]).exists())
        )
        free = self._free_bytes(self._cache_dir)
        if num_bytes > free:
            raise StorageFullError(
                f"Downloading '{listing.repo}' takes {num_bytes / _BYTES_PER_GB:.1f} GB, and the "
                f"disk of the Hugging Face cache has {free / _BYTES_PER_GB:.1f} GB free. Free some "
                "space, or set HF_HOME to a folder on a larger disk."
            )

    def _make_ghost(self, listing: _Listing) -> Path:
        def header(name: str) -> bytes:
            return self._call(
                partial(
                    read_header_bytes,
                    self._api,
                    repo=listing.repo,
                    name=name,
                    revision=listing.sha,
                ),
                repo=listing.repo,
                revision=listing.sha,
            )

        shards = listing.only(_WEIGHTS)
        with ThreadPoolExecutor(_NUM_HEADER_THREADS) as pool:
            headers = list(pool.map(header, shards))
        small = [self._download(listing, name) for name in _SMALL_FILES if name in listing.sizes]
        try:
            ghost = Path(tempfile.mkdtemp(prefix="dynquant-headers-"))
            atexit.register(shutil.rmtree, ghost, ignore_errors=True)
            for name, content in zip(shards, headers, strict=True):
                write_ghost(ghost / name, content, listing.sizes[name])
            for path in small:
                shutil.copyfile(path, ghost / path.name)
        except OSError as error:
            raise StorageFullError(
                "The folder for temporary files cannot be written. Free some space there, or set "
                "TMPDIR to another folder."
            ) from error
        return ghost


def _hub_source(listing: _Listing, folder: Path) -> ModelSource:
    return ModelSource(
        name=listing.repo,
        folder=folder,
        is_repo=True,
        revision_sha=listing.sha,
        license_fields=listing.license_fields,
    )


def _refuse_unusable(listing: _Listing) -> None:
    root = [name for name in listing.sizes if "/" not in name]
    weights = listing.only(_WEIGHTS)
    if "adapter_config.json" in root and not weights:
        raise UnsupportedModelError(
            f"'{listing.repo}' is an adapter, not a whole model. Merge it into its base model "
            "first, or pass the base model."
        )
    if not weights:
        raise _no_weights(listing, root)
    if "config.json" not in root:
        raise InvalidModelError(
            f"'{listing.repo}' has no config.json, so nobody can tell what model it is. Pass the "
            "repo of a model for transformers or mlx-lm."
        )


def _no_weights(
    listing: _Listing, root: Sequence[str]
) -> UnsupportedModelError | InvalidModelError:
    if any(name.endswith(".safetensors") for name in listing.sizes):
        return UnsupportedModelError(
            f"The safetensors files of '{listing.repo}' are not named 'model*.safetensors' at its "
            "top, so mlx-lm does not read them. Look for the same model in the layout of "
            "transformers."
        )
    if any(name.endswith(_PICKLED) for name in root):
        return UnsupportedModelError(
            f"'{listing.repo}' has only PyTorch weights (.bin or .pt), which can run code when "
            "opened. Convert them to safetensors first, for example with "
            "https://huggingface.co/spaces/safetensors/convert."
        )
    if any(name.endswith(".gguf") for name in root):
        return UnsupportedModelError(
            f"'{listing.repo}' holds GGUF files, which are made for llama.cpp. Pass the original "
            "model that they were made from."
        )
    return InvalidModelError(
        f"'{listing.repo}' holds no weights: no file is named 'model*.safetensors'. Check that "
        "this is the repo you mean."
    )
