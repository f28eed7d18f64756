"""Models: a local folder, or a repo on the Hub at a pinned commit."""

from __future__ import annotations

import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers, paginate  # type: ignore[attr-defined]

from dynquant.errors import HubUnavailableError, ModelNotFoundError, Reason, StorageFullError
from dynquant.hub import cache
from dynquant.hub.calls import NUM_DOWNLOAD_TRIES, TIMEOUT_SECS, HubCaller
from dynquant.hub.headers import read_header_bytes, tensors_in, write_ghost
from dynquant.hub.listing import Listing, access_in, hub_id_of, refuse_unusable
from dynquant.hub.local import local_source
from dynquant.hub.local_files import LocalFile
from dynquant.hub.transfers import ByteCount
from dynquant.model.access import Access
from dynquant.model.files import CONFIG, INDEX
from dynquant.model.limits import (
    MAX_HEADER_BYTES,
    MAX_PLANNING_FILE_BYTES,
    file_too_large,
    headers_too_large,
)
from dynquant.model.origin import Origin
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
"""What planning reads besides the headers."""

_NUM_HEADER_THREADS = 8
_NUM_DOWNLOADS = 4

_MAX_COMMITS = 3_000
"""Looked at in search of one: each page of some fifty is a request."""


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class HubModels:
    """Fetches models from the Hub.

    Use it as a context, or call `close`, to remove the folders that `fetch_headers` made and
    to let go of the models in the cache; else that happens when the process ends.

    Args:
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).
        token: None is the one that huggingface_hub finds, False is none at all.
        cache_dir: None is the cache of huggingface_hub (`HF_HOME`).
        max_cache_bytes: Bound of the cache: the least recently used models go when it is
            exceeded. Only for a cache that is dynquant's own; None is no bound.
        free_bytes: Free space of the disk that holds a folder.
        sleep: Waits that many seconds between two tries.
        on_try: Told of every call to the Hub; a file that is read is one.
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
        self._api = HfApi(endpoint=endpoint, token=token, library_name="dynquant")
        self._cache_dir = cache_dir or Path(constants.HF_HUB_CACHE)
        self._max_cache_bytes = max_cache_bytes
        self._free_bytes = free_bytes
        self._call = HubCaller.to_read(self._api.endpoint, sleep=sleep, on_try=on_try)
        self._ghosts: dict[tuple[str, str], tuple[Path, weakref.finalize]] = {}
        self._in_use: dict[str, Callable[[], None]] = {}
        self._last: Listing | None = None

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
        """Remove the folders that `fetch_headers` made, and let go of the models in the cache."""
        for _, remove in self._ghosts.values():
            remove()
        self._ghosts.clear()
        for let_go in self._in_use.values():
            let_go()
        self._in_use.clear()

    def fetch(
        self,
        model: str,
        *,
        revision: str | None = None,
        allow_quantized: bool = False,
        progress: Progress | None = None,
    ) -> ModelSource:
        """The model in a local folder; downloads what of it is needed and missing or damaged.

        Every file has the hash that the Hub gives it, also what was in the cache before. The model
        counts as in use, and stays in the cache, until `close`.

        Args:
            model: Local folder or repo id.
            revision: Branch, tag or commit of a repo.
            allow_quantized: Take a repo that says that it is a quant.
            progress: Shows the step `download`, in bytes.

        Raises:
            ModelNotFoundError: No such folder, repo or revision, or no access to it.
            InvalidModelError: The repo lacks a config or weights.
            InvalidOptionError: A revision of a local folder.
            UnsupportedModelError: It has weights, and none that mlx-lm reads; or it is a quant.
            HubUnavailableError: Network, rate limit, 5xx, or the client is set offline.
            StorageFullError: It would not fit on the disk of the cache.
        """
        if (local := self._local(model, revision)) is not None:
            return local
        listing = self.look_up(model, revision=revision, allow_quantized=allow_quantized)
        cache.remove_partial_downloads(self._cache_dir, listing.repo)
        self._use(listing.repo)
        folder = self._download(listing, CONFIG).parent  # where a gated repo says so
        names = [*listing.others, *self._weights(listing)]
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            self._make_room(listing, missing)
        with (progress or _Silent()).track({"download": listing.num_bytes(names)}) as on_step:
            on_step("download", listing.num_bytes(names) - listing.num_bytes(missing))
            with ThreadPoolExecutor(_NUM_DOWNLOADS) as pool:
                # All of them: what is there already may have come to harm, or its download died
                # before it was looked at. In a list, so that the first error is raised.
                list(pool.map(partial(self._download, listing, on_step=on_step), names))
        return listing.source(folder)

    def fetch_headers(
        self, model: str, *, revision: str | None = None, allow_quantized: bool = False
    ) -> ModelSource:
        """The model with real headers and no weights: its safetensors files are sparse.

        Their sizes and headers are those of the real files and their data is a hole, so every
        check of a folder works, and whatever reads weights reads zeros. A local folder is
        returned as it is.

        Raises:
            ModelNotFoundError, InvalidModelError, InvalidOptionError, UnsupportedModelError,
            HubUnavailableError: As for `fetch`.
            StorageFullError: The folder for temporary files cannot be written.
        """
        if (local := self._local(model, revision)) is not None:
            return local
        listing = self.look_up(model, revision=revision, allow_quantized=allow_quantized)
        for name in _SMALL_FILES:
            if (listing.sizes.get(name) or 0) > MAX_PLANNING_FILE_BYTES:
                raise file_too_large(name, MAX_PLANNING_FILE_BYTES)
        self._download(listing, CONFIG)  # where a gated repo says so
        key = (listing.repo, listing.sha)
        if key not in self._ghosts:
            ghost = self._make_ghost(listing)
            remove = weakref.finalize(self, shutil.rmtree, ghost, ignore_errors=True)
            self._ghosts[key] = ghost, remove
        return listing.source(self._ghosts[key][0])

    def look_up(
        self, model: str, *, revision: str | None = None, allow_quantized: bool = False
    ) -> Listing:
        """A repo at one commit; refuses what its metadata shows not to work.

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
        """Whether a commit led to this one, as far as the latest thousands of commits tell.

        A repo also answers to commits of pull requests, which everybody may open.

        Raises:
            ModelNotFoundError, HubUnavailableError: As for `fetch`.
        """

        def ask() -> bool:
            url = f"{self._api.endpoint}/api/models/{of.repo}/commits/{of.sha}"
            headers = build_hf_headers(token=self._api.token, library_name="dynquant")
            commits = paginate(url, params={}, headers=headers, timeout=TIMEOUT_SECS)
            return any(each["id"] == sha for each in islice(commits, _MAX_COMMITS))

        return self._call(ask, repo=of.repo, revision=of.sha)

    def access_of(self, origin: Origin) -> Access:
        """Who may read a model now; a model that is gone or hidden counts as a private one.

        Raises:
            HubUnavailableError: Network, rate limit, 5xx, or the Hub does not accept the token.
        """
        try:
            info = self._call(
                lambda: self._api.model_info(origin.name, timeout=TIMEOUT_SECS), repo=origin.name
            )
        except ModelNotFoundError as error:
            if error.reason is Reason.TOKEN_REFUSED:  # which says nothing about the model
                raise HubUnavailableError(str(error)) from error
            return Access(is_private=True)
        if not Origin(name=origin.name, hub_id=hub_id_of(info)).is_same_as(origin):
            return Access(is_private=True)
        return access_in(info)

    def _sized(self, listing: Listing) -> Listing:
        """The listing with the sizes that requests for the files themselves tell."""

        def num_bytes(name: str) -> int | None:
            url = hf_hub_url(listing.repo, name, revision=listing.sha, endpoint=self._api.endpoint)
            return self._call(
                lambda: self._api.get_hf_file_metadata(url=url, timeout=TIMEOUT_SECS).size,
                repo=listing.repo,
                revision=listing.sha,
            )

        names = listing.unsized
        with ThreadPoolExecutor(_NUM_HEADER_THREADS) as pool:
            return listing.sized(dict(zip(names, pool.map(num_bytes, names), strict=True)))

    def _weights(self, listing: Listing) -> list[str]:
        """The weight files that count, of which a second copy is none.

        Raises:
            InvalidModelError: Nothing tells which of two files counts, or one is missing.
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

    def _local(self, model: str, revision: str | None) -> ModelSource | None:
        return local_source(model, revision, cache_dir=self._cache_dir)

    def _download(
        self, listing: Listing, name: str, *, on_step: OnStep = lambda _step, _amount=1: None
    ) -> Path:
        """A file of the repo, with the content that the listing names."""
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
            # The client compares no more than sizes.
            file = LocalFile(path=Path(path), num_bytes=Path(path).stat().st_size)
            if not listing.etags[name] or file.is_called(listing.etags[name]):
                return file.path
            on_step("download", -file.num_bytes)
            cache.remove_damaged(file.path)
        raise HubUnavailableError(
            f"'{name}' of '{listing.repo}' arrived damaged, twice. Try again; if that does not "
            "help, look at the disk and the network of this machine."
        )

    def _use(self, repo: str) -> None:
        """Keep `repo` in the cache until `close`."""
        if repo not in self._in_use:
            self._in_use[repo] = cache.held(self._cache_dir, repo)

    def _make_room(self, listing: Listing, missing: Sequence[str]) -> None:
        """Room for `missing` in the cache and on its disk.

        Raises:
            StorageFullError: There is none.
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

    def _headers(self, listing: Listing, names: Sequence[str]) -> list[bytes]:
        """The first bytes of these weight files.

        Raises:
            InvalidModelError: They are larger than those of any model.
        """

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

        headers: list[bytes] = []
        # A few at a time, so that many large ones are not all asked for before they are counted.
        with ThreadPoolExecutor(_NUM_HEADER_THREADS) as pool:
            for start in range(0, len(names), _NUM_HEADER_THREADS):
                headers += pool.map(header, names[start : start + _NUM_HEADER_THREADS])
                if sum(map(len, headers)) > MAX_HEADER_BYTES:
                    raise headers_too_large()
        return headers

    def _make_ghost(self, listing: Listing) -> Path:
        names = self._weights(listing)
        sizes = {name: listing.sizes[name] for name in names}
        if unknown := [name for name in names if sizes[name] is None]:
            raise HubUnavailableError(
                f"The Hub, or the mirror in HF_ENDPOINT, does not tell the size of '{unknown[0]}' "
                f"of '{listing.repo}', and planning needs it. Pass a local folder, or unset "
                "HF_ENDPOINT."
            )
        headers = self._headers(listing, names)
        small = [self._download(listing, name) for name in _SMALL_FILES if name in listing.sizes]
        ghost = _temporary_folder()
        try:
            for name, content in zip(names, headers, strict=True):
                write_ghost(ghost / name, content, sizes[name] or 0)
            for path in small:
                shutil.copyfile(path, ghost / path.name)
        except OSError as error:
            shutil.rmtree(ghost, ignore_errors=True)
            raise _no_temporary_files() from error
        return ghost


@contextmanager
def opened_briefly(
    *,
    endpoint: str | None = None,
    token: str | bool | None = None,
    on_try: Callable[[], None] = lambda: None,
) -> Iterator[HubModels]:
    """The Hub for a look at a model's headers, of which nothing stays on the disk.

    Raises:
        StorageFullError: The folder for temporary files cannot be written.
    """
    folder = _temporary_folder()
    try:
        with HubModels(endpoint=endpoint, token=token, cache_dir=folder, on_try=on_try) as hub:
            yield hub
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="dynquant-headers-"))
    except OSError as error:
        raise _no_temporary_files() from error


def _no_temporary_files() -> StorageFullError:
    return StorageFullError(
        "The folder for temporary files cannot be written. Free some space there, or set "
        "TMPDIR to another folder."
    )


class _Silent:
    """Progress that nobody watches."""

    @contextmanager
    def track(self, steps: Mapping[str, int]) -> Iterator[OnStep]:  # noqa: ARG002
        yield lambda _step, _amount=1: None
