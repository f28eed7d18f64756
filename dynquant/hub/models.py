"""Models: a local folder, or a repo on the Hub at a pinned commit."""

from __future__ import annotations

import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import paginate  # type: ignore[attr-defined]

from dynquant.errors import HubUnavailableError, ModelNotFoundError, Reason, StorageFullError
from dynquant.hub import cache
from dynquant.hub.calls import NUM_DOWNLOAD_TRIES, TIMEOUT_SECS
from dynquant.hub.client import HubClient
from dynquant.hub.headers import read_headers, temporary_folder, tensors_in, write_headers
from dynquant.hub.listing import Listing, access_in, hub_id_of, refuse_unusable
from dynquant.hub.local import local_source
from dynquant.hub.local_files import LocalFile
from dynquant.hub.transfers import ByteCount
from dynquant.model.access import Access
from dynquant.model.files import CONFIG, INDEX
from dynquant.model.limits import MAX_PLANNING_FILE_BYTES, file_too_large
from dynquant.model.origin import Origin
from dynquant.model.originals import require_original
from dynquant.model.source import ModelSource
from dynquant.model.weight_files import chosen_files, is_settled, weight_map_in
from dynquant.progress import OnStep, Progress
from dynquant.report.numbers import size

__all__ = ["HubModels", "opened_briefly"]

_SMALL_FILES = (
    CONFIG,
    "generation_config.json",
    "hf_quant_config.json",
    "tokenizer_config.json",
    INDEX,
    "README.md",
)
"""Read for planning, besides the headers."""

_NUM_SIZE_THREADS = 8
_NUM_DOWNLOADS = 4

_MAX_COMMITS = 3_000
"""Of a history that is searched for a commit: each page of some fifty is a request."""


def _ignore(_step: str, _amount: int = 1, /) -> None:
    """Takes the progress of a step and shows nothing."""


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class HubModels(HubClient):
    """Fetches models from the Hub.

    Use it as a context, or call `close`, to remove the folders that `fetch_headers` made and
    to release the models in the cache; else that happens when the process ends.

    Args:
        endpoint, token, sleep, on_try: As for `HubClient`.
        cache_dir: None is the cache of huggingface_hub (`HF_HOME`).
        max_cache_bytes: Bound of the cache: the least recently used models are removed when it
            is exceeded. Only for a cache that is dynquant's own; None is no bound.
        free_bytes: Free space of the disk that holds a folder.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        cache_dir: Path | None = None,
        max_cache_bytes: int | None = None,
        free_bytes: Callable[[Path], int] = _free_bytes,
        sleep: Callable[[float], None] = time.sleep,
        on_try: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(endpoint=endpoint, token=token, sleep=sleep, on_try=on_try)
        self._cache_dir = cache_dir or Path(constants.HF_HUB_CACHE)
        self._max_cache_bytes = max_cache_bytes
        self._free_bytes = free_bytes
        # (repo, commit) → folder with its headers, and the function that removes the folder.
        self._folders: dict[tuple[str, str], tuple[Path, weakref.finalize]] = {}
        self._in_use: dict[str, Callable[[], None]] = {}
        self._last: Listing | None = None

    def __enter__(self) -> HubModels:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the folders that `fetch_headers` made, and release the models in the cache."""
        for _, remove in self._folders.values():
            remove()
        self._folders.clear()
        for release in self._in_use.values():
            release()
        self._in_use.clear()

    def fetch(
        self,
        model: str,
        *,
        revision: str | None = None,
        allow_quantized: bool = False,
        progress: Progress | None = None,
    ) -> ModelSource:
        """The model in a local folder; downloads the needed files that are missing or damaged.

        The hash of every file is compared with the Hub's, also of files that were in the cache
        before. The model counts as in use, and stays in the cache, until `close`.

        Args:
            model: Local folder or repo id.
            revision: Branch, tag or commit of a repo.
            allow_quantized: Take a quant of another publisher's model too.
            progress: Shows the step `download`, in bytes.

        Raises:
            ModelNotFoundError: No such folder, repo or revision, or no access to it.
            InvalidModelError: The repo lacks a config or weights.
            InvalidOptionError: A revision of a local folder.
            UnsupportedModelError: mlx-lm does not read its weights, or it is a quant of another
                publisher's model.
            HubUnavailableError: Network, rate limit, 5xx, or the client is set offline.
            StorageFullError: It would not fit on the disk of the cache.
        """
        local = self._local(model, revision, allow_quantized=allow_quantized)
        if local is not None:
            return local
        listing = self.look_up(model, revision=revision, allow_quantized=allow_quantized)
        cache.remove_partial_downloads(self._cache_dir, listing.repo)
        if listing.repo not in self._in_use:
            self._in_use[listing.repo] = cache.held(self._cache_dir, listing.repo)
        folder = self._download(listing, CONFIG).parent  # a gated repo refuses here
        names = [*listing.others, *self._weights(listing)]
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            self._make_room(listing, missing)
        steps = {"download": listing.num_bytes(names)}
        with progress.track(steps) if progress else nullcontext(_ignore) as on_step:
            on_step("download", listing.num_bytes(names) - listing.num_bytes(missing))
            with ThreadPoolExecutor(_NUM_DOWNLOADS) as pool:
                # All names: a file in the cache may be damaged, or its download was killed before
                # its hash was compared. In a list, so that the first error is raised.
                list(pool.map(partial(self._download, listing, on_step=on_step), names))
        return listing.source(folder)

    def fetch_headers(
        self, model: str, *, revision: str | None = None, allow_quantized: bool = False
    ) -> ModelSource:
        """The model with real headers and no weights: its safetensors files are sparse.

        Their sizes and headers are those of the real files and their data is a hole, so every
        check of a folder works, and weights read as zeros. A local folder is returned as it is.

        Raises:
            ModelNotFoundError, InvalidModelError, InvalidOptionError, UnsupportedModelError,
            HubUnavailableError: As for `fetch`.
            StorageFullError: The folder for temporary files cannot be written.
        """
        local = self._local(model, revision, allow_quantized=allow_quantized)
        if local is not None:
            return local
        listing = self.look_up(model, revision=revision, allow_quantized=allow_quantized)
        for name in _SMALL_FILES:
            if (listing.sizes.get(name) or 0) > MAX_PLANNING_FILE_BYTES:
                raise file_too_large(name, MAX_PLANNING_FILE_BYTES)
        self._download(listing, CONFIG)  # a gated repo refuses here
        key = (listing.repo, listing.sha)
        if key not in self._folders:
            folder = self._folder_of_headers(listing)
            remove = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self._folders[key] = folder, remove
        return listing.source(self._folders[key][0])

    def look_up(
        self, model: str, *, revision: str | None = None, allow_quantized: bool = False
    ) -> Listing:
        """A repo at one commit; refuses a repo whose metadata shows that it cannot be converted.

        It takes one request, and one more for each file whose size a mirror of the Hub leaves out.

        Raises:
            ModelNotFoundError, InvalidModelError, UnsupportedModelError, HubUnavailableError: As
            for `fetch`; the last also when two answers in a row about one commit differ.
        """
        info = self._call(
            lambda: self._api.model_info(
                model, revision=revision or None, files_metadata=True, timeout=TIMEOUT_SECS
            ),
            repo=model,
            revision=revision,
        )
        listing = Listing.of(info)
        before, self._last = self._last, listing
        if before is not None and before.is_other_answer_than(listing):
            raise HubUnavailableError(
                f"The Hub gave two different answers about the same commit of '{listing.repo}'. "
                "Try again."
            )
        refuse_unusable(listing, allow_quantized=allow_quantized)
        return self._sized(listing) if listing.unsized else listing

    def is_in_history(self, sha: str, *, of: Listing) -> bool:
        """Whether a commit is an ancestor of a listing's, among its latest thousands of commits.

        A repo also answers to commits of pull requests, which every account may open.

        Raises:
            ModelNotFoundError, HubUnavailableError: As for `fetch`.
        """

        def ask() -> bool:
            url = f"{self._api.endpoint}/api/models/{of.repo}/commits/{of.sha}"
            commits = paginate(
                url, params={}, headers=self._request_headers(), timeout=TIMEOUT_SECS
            )
            return any(each["id"] == sha for each in islice(commits, _MAX_COMMITS))

        return self._call(ask, repo=of.repo, revision=of.sha)

    def access_of(self, origin: Origin) -> Access:
        """A model's current access; a model that is gone or hidden counts as private.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx, or the Hub does not accept the token.
        """
        try:
            info = self._call(
                lambda: self._api.model_info(origin.name, timeout=TIMEOUT_SECS), repo=origin.name
            )
        except ModelNotFoundError as error:
            if error.reason is Reason.TOKEN_REFUSED:  # then the model may still be public
                raise HubUnavailableError(str(error)) from error
            return Access(is_private=True)
        if not Origin(name=origin.name, hub_id=hub_id_of(info)).is_same_as(origin):
            return Access(is_private=True)
        return access_in(info)

    def _sized(self, listing: Listing) -> Listing:
        """The listing with the missing sizes, from a request for each of the files."""

        def num_bytes(name: str) -> int | None:
            url = hf_hub_url(listing.repo, name, revision=listing.sha, endpoint=self._api.endpoint)
            return self._call(
                lambda: self._api.get_hf_file_metadata(url=url, timeout=TIMEOUT_SECS).size,
                repo=listing.repo,
                revision=listing.sha,
            )

        names = listing.unsized
        with ThreadPoolExecutor(_NUM_SIZE_THREADS) as pool:
            return listing.sized(dict(zip(names, pool.map(num_bytes, names), strict=True)))

    def _weights(self, listing: Listing) -> list[str]:
        """The weight files that mlx-lm reads, without second copies of the same tensors.

        Raises:
            InvalidModelError: Two files hold the same tensor and no index chooses, or a file is
                missing.
        """
        names = listing.weights
        weight_map = {}
        if INDEX in listing.sizes:
            weight_map = weight_map_in(self._download(listing, INDEX).read_bytes())
        if is_settled(names, weight_map):
            return names
        headers = zip(names, self._headers(listing, names), strict=True)
        tensors = {name: tensors_in(name, header) for name, header in headers}
        return [*chosen_files(tensors, weight_map).read]

    def _headers(self, listing: Listing, names: Sequence[str]) -> list[bytes]:
        call = partial(self._call, repo=listing.repo, revision=listing.sha)
        return read_headers(self._api, call, listing, names)

    def _local(
        self, model: str, revision: str | None, *, allow_quantized: bool
    ) -> ModelSource | None:
        source = local_source(model, revision, cache_dir=self._cache_dir)
        if source is not None and not allow_quantized:
            require_original(source.name, quantized_from=source.quantized_from)
        return source

    def _download(self, listing: Listing, name: str, *, on_step: OnStep = _ignore) -> Path:
        """A file of the repo, whose hash is compared with the listing's."""
        for _ in range(NUM_DOWNLOAD_TRIES):
            path = self._call(
                lambda: self._api.hf_hub_download(
                    listing.repo,
                    name,
                    revision=listing.sha,
                    cache_dir=self._cache_dir,
                    tqdm_class=cast(Any, partial(ByteCount, partial(on_step, "download"))),
                ),
                repo=listing.repo,
                revision=listing.sha,
                num_tries=NUM_DOWNLOAD_TRIES,
            )
            # The client compares sizes alone.
            file = LocalFile(path=Path(path), num_bytes=Path(path).stat().st_size)
            if not listing.etags[name] or file.is_called(listing.etags[name]):
                return file.path
            on_step("download", -file.num_bytes)
            cache.remove_damaged(file.path)
        raise HubUnavailableError(
            f"'{name}' of '{listing.repo}' arrived damaged, twice. Try again; if that does not "
            "help, look at the disk and the network of this machine."
        )

    def _make_room(self, listing: Listing, missing: Sequence[str]) -> None:
        """Trim the cache so that `missing` fits in it and on its disk.

        Raises:
            StorageFullError: The disk has too little free space.
        """
        blobs = cache.repo_folder(self._cache_dir, listing.repo) / "blobs"
        new = [name for name in missing if not (blobs / (listing.etags[name] or "-")).exists()]
        num_bytes = listing.num_bytes(new)
        if self._max_cache_bytes is not None:
            cache.trim(self._cache_dir, max_bytes=self._max_cache_bytes, needed_bytes=num_bytes)
        free = self._free_bytes(self._cache_dir)
        if num_bytes > free:
            raise StorageFullError(
                f"Downloading '{listing.repo}' takes {size(num_bytes)}, and the disk of the "
                f"cache has {size(free)} free. Free some space, or set HF_HOME to a folder on a "
                "larger disk."
            )

    def _folder_of_headers(self, listing: Listing) -> Path:
        names = self._weights(listing)
        if unknown := [name for name in names if listing.sizes[name] is None]:
            raise HubUnavailableError(
                f"The Hub, or the mirror in HF_ENDPOINT, does not tell the size of '{unknown[0]}' "
                f"of '{listing.repo}', and planning needs it. Pass a local folder, or unset "
                "HF_ENDPOINT."
            )
        headers = dict(zip(names, self._headers(listing, names), strict=True))
        small = [self._download(listing, name) for name in _SMALL_FILES if name in listing.sizes]
        return write_headers(listing, headers, small)


@contextmanager
def opened_briefly(
    *,
    endpoint: str | None = None,
    token: str | bool | None = None,
    on_try: Callable[[], None] = lambda: None,
) -> Iterator[HubModels]:
    """The Hub, to read a model's headers, with a cache that is removed afterwards.

    Raises:
        StorageFullError: The folder for temporary files cannot be written.
    """
    folder = temporary_folder()
    try:
        with HubModels(endpoint=endpoint, token=token, cache_dir=folder, on_try=on_try) as hub:
            yield hub
    finally:
        shutil.rmtree(folder, ignore_errors=True)
