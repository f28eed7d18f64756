"""Datasets on the Hub as parquet files that are read over the network, range by range."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, cast

from huggingface_hub import DatasetInfo, HfApi, HfFileSystem
from huggingface_hub.errors import RevisionNotFoundError

from dynquant.errors import TextError
from dynquant.hub.calls import TIMEOUT_SECS, HubCaller

__all__ = ["HubDataset", "HubDatasets"]

_CONVERTED = "refs/convert/parquet"
"""Where the Hub keeps its own parquet conversion, as `config/split/0000.parquet`."""

# A dataset above 5 GB is converted only in part, under this name.
_PARTIAL = "partial-"
_CONVERTED_FILE = re.compile(r"(?P<config>[^/]+)/(?P<split>[^/]+)/\d+\.parquet")
# What `push_to_hub` of the datasets library writes, and the same by hand.
_OWN_FILE = re.compile(
    r"(?:(?P<config>[^/]+)/)?(?P<split>[^/]+?)"
    r"(?:-\d+-of-\d+(?:-[0-9a-f]+)?|/[^/]+)?\.parquet"
)
_NUM_PARTS = 4
_NUM_LISTED = 30

Layout = Mapping[tuple[str, str], tuple[str, ...]]
"""(config, split) → its parquet files, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubDataset:
    """The parquet files of one split.

    Attributes:
        name: `org/name:config:split`.
        column: The column that was asked for, if one was.
        files: Each opens one file; only what is read of it is fetched.
    """

    name: str
    column: str | None
    files: tuple[Callable[[], BinaryIO], ...]


class HubDatasets:
    """Finds datasets on the Hub.

    Args:
        endpoint: Address of the Hub; None is what huggingface_hub uses (`HF_ENDPOINT`).
        token: None is the one that huggingface_hub finds, False is none at all.
        sleep: Waits that many seconds between two tries.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._api = HfApi(endpoint=endpoint, token=token, library_name="dynquant")
        self._files = HfFileSystem(endpoint=endpoint, token=token, skip_instance_cache=True)
        self._call = HubCaller(
            noun="dataset",
            refusal=TextError,
            page_prefix=f"{self._api.endpoint}/datasets/",
            sleep=sleep,
        )

    def open(self, source: str) -> HubDataset:
        """The split that `source`, `org/name[:config[:split[:column]]]`, names.

        Raises:
            TextError: No such dataset, config or split, no access, or no parquet files of it.
            HubUnavailableError: Network, rate limit, 5xx, or the client is set offline.
        """
        parts = source.split(":")
        if len(parts) > _NUM_PARTS:
            raise TextError(
                f"'{source}' has too many parts. Write a dataset as 'org/name:config:split:column'."
            )
        repo, config, split, column = (parts + [""] * _NUM_PARTS)[:_NUM_PARTS]
        info = self._info(repo, None)
        if info is None:
            raise TextError(f"'{repo}' on the Hub is empty. Take another dataset.")
        # `info.id` is today's name of a dataset that was renamed.
        versions = []
        if (converted := self._info(info.id, _CONVERTED)) is not None:
            versions.append((converted, _layout(_names(converted), _CONVERTED_FILE)))
        versions.append((info, _layout(_names(info), _OWN_FILE)))
        versions = [(version, layout) for version, layout in versions if layout]
        if not versions:
            raise TextError(
                f"'{info.id}' has no parquet files, and the Hub made none of it. Download the "
                "texts and pass them as a .txt, .jsonl or .parquet file."
            )
        refusal = None
        for version, layout in versions:
            try:
                key = _choose(layout, info.id, config, split)
            except TextError as error:
                refusal = refusal or error
                continue
            return HubDataset(
                name=":".join((info.id, *key)),
                column=column or None,
                files=tuple(
                    partial(self._open_file, info.id, version.sha or "", path)
                    for path in layout[key]
                ),
            )
        assert refusal is not None
        raise refusal

    def _info(self, repo: str, revision: str | None) -> DatasetInfo | None:
        """What the Hub knows of a dataset; None if it has no such revision."""

        def ask() -> DatasetInfo | None:
            try:
                return self._api.dataset_info(repo, revision=revision, timeout=TIMEOUT_SECS)
            except RevisionNotFoundError:
                return None

        return self._call(ask, repo=repo, revision=revision)

    def _open_file(self, repo: str, sha: str, path: str) -> BinaryIO:
        call = partial(self._call, repo=repo, num_tries=1)  # HfFileSystem retries by itself
        # Parquet readers ask for exactly what they need, so reading ahead would be waste.
        file = call(
            partial(self._files.open, f"datasets/{repo}@{sha}/{path}", "rb", cache_type="none")
        )
        return cast(BinaryIO, io.BufferedReader(_RemoteFile(file, call), buffer_size=1))


class _RemoteFile(io.RawIOBase):
    """A file of the Hub whose errors are ours."""

    def __init__(self, file: BinaryIO, call: Callable[..., bytes]) -> None:
        self._file = file
        self._call = call

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        content = self._call(partial(self._file.read, len(buffer)))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def _names(info: DatasetInfo) -> list[str]:
    return sorted(each.rfilename for each in info.siblings or [])


def _layout(names: Iterable[str], pattern: re.Pattern[str]) -> Layout:
    layout: dict[tuple[str, str], tuple[str, ...]] = {}
    for name in names:
        if (found := pattern.fullmatch(name)) is None:
            continue
        config, split = found["config"] or "default", found["split"].removeprefix(_PARTIAL)
        if pattern is _OWN_FILE and config == "data":
            config = "default"
        key = (config, split)
        layout[key] = (*layout.get(key, ()), name)
    return layout


def _choose(layout: Layout, repo: str, config: str, split: str) -> tuple[str, str]:
    configs = sorted({each for each, _ in layout})
    if not config:
        config = "default" if "default" in configs else configs[0]
        if config != "default" and len(configs) > 1:
            raise TextError(
                f"'{repo}' has several configs; say which one, as in '{repo}:{config}'. There "
                f"are: {_listed(configs)}."
            )
    if config not in configs:
        raise TextError(f"'{repo}' has no config '{config}'. There are: {_listed(configs)}.")
    splits = sorted(each for its_config, each in layout if its_config == config)
    if not split:
        split = "train" if "train" in splits else splits[0]
        if split != "train" and len(splits) > 1:
            raise TextError(
                f"'{repo}:{config}' has no split 'train'; say which one to take, as in "
                f"'{repo}:{config}:{split}'. There are: {_listed(splits)}."
            )
    if split not in splits:
        raise TextError(f"'{repo}:{config}' has no split '{split}'. There are: {_listed(splits)}.")
    return config, split


def _listed(names: list[str]) -> str:
    more = len(names) - _NUM_LISTED
    return ", ".join(names[:_NUM_LISTED]) + (f" and {more} more" if more > 0 else "")
