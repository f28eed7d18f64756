"""Datasets on the Hub as parquet files that are read over the network, range by range."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, cast

from huggingface_hub import DatasetInfo, HfFileSystem
from huggingface_hub.errors import RevisionNotFoundError

from dynquant.errors import TextError
from dynquant.hub.calls import TIMEOUT_SECS
from dynquant.hub.client import HubClient

__all__ = ["HubDataset", "HubDatasets"]

_CONVERTED = "refs/convert/parquet"
"""The branch with the Hub's own parquet conversion, as `config/split/0000.parquet`."""

_PARTIAL = "partial-"
"""Prefix of a split that the Hub converted only in part, as the dataset is above 5 GB."""
_CONVERTED_FILE = re.compile(r"(?P<config>[^/]+)/(?P<split>[^/]+)/\d+\.parquet")
# The names that `push_to_hub` of the datasets library writes, and similar ones.
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
        column: The requested column, if any.
        files: Each opens one file; only the ranges that are read are downloaded.
    """

    name: str
    column: str | None
    files: tuple[Callable[[], BinaryIO], ...]


class HubDatasets(HubClient):
    """Finds datasets on the Hub; its arguments are those of `HubClient`."""

    _noun = "dataset"
    _refusal = TextError

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | bool | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(endpoint=endpoint, token=token, sleep=sleep)
        self._files = HfFileSystem(endpoint=endpoint, token=token, skip_instance_cache=True)

    def open(self, source: str) -> HubDataset:
        """The split that `source`, `org/name[:config[:split[:column]]]`, names.

        Raises:
            TextError: No such dataset, config or split, no access, or no parquet files.
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
        # `info.id` is the current name of a dataset that was renamed.
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
        """The Hub's metadata of a dataset; None if it has no such revision."""

        def ask() -> DatasetInfo | None:
            try:
                return self._api.dataset_info(repo, revision=revision, timeout=TIMEOUT_SECS)
            except RevisionNotFoundError:
                return None

        return self._call(ask, repo=repo, revision=revision)

    def _open_file(self, repo: str, sha: str, path: str) -> BinaryIO:
        call = partial(self._call, repo=repo, num_tries=1)  # HfFileSystem retries by itself
        # Parquet readers request exact ranges, so reading ahead would download too much.
        file = call(
            partial(self._files.open, f"datasets/{repo}@{sha}/{path}", "rb", cache_type="none")
        )
        return cast(BinaryIO, io.BufferedReader(_RemoteFile(file, call), buffer_size=1))


class _RemoteFile(io.RawIOBase):
    """A file of the Hub whose errors are translated into ours."""

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
    config = _chosen("config", config, configs, default="default", place=repo)
    splits = sorted(each for its_config, each in layout if its_config == config)
    return config, _chosen("split", split, splits, default="train", place=f"{repo}:{config}")


def _chosen(kind: str, wanted: str, names: list[str], *, default: str, place: str) -> str:
    """The wanted name; if it is empty the default, or the only name.

    Raises:
        TextError: There is no such name, or there are several and none is the default.
    """
    if not wanted:
        wanted = default if default in names else names[0]
        if wanted != default and len(names) > 1:
            raise TextError(
                f"'{place}' has several {kind}s, and none is '{default}'; choose one, as in "
                f"'{place}:{wanted}'. There are: {_listed(names)}."
            )
    if wanted not in names:
        raise TextError(f"'{place}' has no {kind} '{wanted}'. There are: {_listed(names)}.")
    return wanted


def _listed(names: list[str]) -> str:
    more = len(names) - _NUM_LISTED
    return ", ".join(names[:_NUM_LISTED]) + (f" and {more} more" if more > 0 else "")
