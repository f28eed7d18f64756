"""A job's folder: what the runner keeps there, and `work` and `scratch`, where its child may write.

The child is not trusted once it has read a stranger's file. The runner never follows a link there,
reads no more than it expects, and copies what it goes on with to where no child may write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from dynquant.model.limits import MAX_SHARDS, MAX_SMALL_FILE_BYTES, MAX_SMALL_FILES
from dynquant.runner.answers import distrusted
from dynquant.sandbox.held_folder import HeldFolder, UnexpectedEntryError

__all__ = [
    "MAX_TEXT_BYTES",
    "MODELS",
    "PAPERS",
    "SCRATCH",
    "WINDOWS",
    "WORK",
    "JobFolder",
    "remove_folder",
]

WORK = "work"
"""Empty before every step; what the step leaves there is its result."""

SCRATCH = "scratch"
"""The child's home and its temporary files. MLX keeps there what it has compiled for this job."""

MODELS = "models"
"""Of the child in `work`; of the runner beside it, once they were copied."""

WINDOWS = "windows.json"
"""Token windows of both texts, cut by the first step that measures."""

PAPERS = "papers"
"""In `work`: a folder for each model."""

_COPIED = "models-copied"
_COPY_BYTES = 1 << 24
MAX_TEXT_BYTES = 32_000_000
"""Of a cost table or a plan; those of the largest models have a few million."""

_WEIGHTS = re.compile(r"model(-\d{5,9}-of-\d{5,9})?\.safetensors")
_ITS_OWN = frozenset({"config.json", "model.safetensors.index.json"})


class JobFolder:
    """The folder of one job.

    Args:
        path: Where; its parents are the runner's alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def work(self) -> Path:
        """Where the child leaves its results."""
        return self.path / WORK

    @property
    def scratch(self) -> Path:
        """The child's home and temporary files."""
        return self.path / SCRATCH

    @property
    def models(self) -> Path:
        """Where the encoded models are, whole, once `take_models` has returned."""
        return self.path / MODELS

    def make(self) -> None:
        """Make the folder where it is not there."""
        self.path.mkdir(parents=True, exist_ok=True)

    def renew_work(self) -> None:
        """An empty `work` for a step, whatever the last one has left there."""
        with HeldFolder.open(self.path) as held:
            held.remove(WORK)
            for name in (WORK, SCRATCH):
                held.folder(name, make=True).close()

    def has(self, *names: str) -> bool:
        """Whether the runner has put a file or a folder here; `names` lead to it."""
        *folders, last = names
        try:
            with HeldFolder.open(self.path, *folders) as held:
                return held.has(last)
        except FileNotFoundError:
            return False

    def read(self, name: str) -> str | None:
        """A file that the runner has written; None if it has not."""
        with _distrusting(), HeldFolder.open(self.path) as held:
            return held.read_text(name, max_bytes=2 * MAX_TEXT_BYTES)

    @contextmanager
    def written(self, name: str) -> Iterator[TextIO]:
        """A stream that becomes a file of the runner when it ends without an error."""
        with HeldFolder.open(self.path) as held, held.written(name) as stream:
            yield stream

    def write(self, name: str, content: str) -> None:
        """Write a file of the runner whole or not at all."""
        with self.written(name) as stream:
            stream.write(content)

    def keep_windows(self) -> None:
        """Copy the token windows that a child left, if it did, to where no child may write."""
        with _distrusting(), HeldFolder.open(self.path, WORK) as held:
            windows = held.read_text(WINDOWS, max_bytes=MAX_TEXT_BYTES)
        if windows is not None:
            self.write(WINDOWS, windows)

    def left_by_child(self, *names: str) -> str:
        """The text of a file in `work`; `names` lead to it.

        Raises:
            NeverPublishError: There is something else in its place, or nothing.
        """
        *folders, last = names
        with _distrusting(), HeldFolder.open(self.path, WORK, *folders) as held:
            text = held.read_text(last, max_bytes=MAX_TEXT_BYTES)
        if text is None:
            raise distrusted(f"there is no {last!r}")
        return text

    def take_models(
        self,
        names: Collection[str],
        *,
        source: Path,
        max_bytes: int,
        on_copied: Callable[[int], None],
    ) -> None:
        """Copy the models that the child encoded to where no child may write.

        The weights, their index and the config are the child's; everything else is copied from the
        original, which the child could only read. Nothing is there under its final name until all
        is copied, and what was copied is removed from `work`, file by file.

        Args:
            names: Of the models that there should be.
            source: Folder of the original.
            max_bytes: Of all files together.
            on_copied: Told how many bytes were copied, a few times a second.

        Raises:
            NeverPublishError: The child left something else.
        """
        left = max_bytes
        with _distrusting(), HeldFolder.open(self.path) as held:
            held.remove(_COPIED)
            with (
                HeldFolder.open(self.path, WORK, MODELS) as encoded,
                held.folder(_COPIED, make=True) as copied,
            ):
                if set(encoded.names(at_most=len(names))) != set(names):
                    raise UnexpectedEntryError("other models than were asked for")
                for name in names:
                    with encoded.folder(name) as there, copied.folder(name, make=True) as here:
                        for file in there.names(at_most=MAX_SHARDS + MAX_SMALL_FILES):
                            with _content(there, file, source=source, max_bytes=left) as stream:
                                left -= _copy(
                                    stream, here, file, max_bytes=left, on_copied=on_copied
                                )
                            there.remove(file)
            held.move(_COPIED, held, MODELS)


def remove_folder(path: Path) -> None:
    """Remove a job's folder, whatever its child has left in it.

    Raises:
        OSError: Something cannot be removed.
    """
    try:
        with HeldFolder.open(path.parent) as parent:
            parent.remove(path.name)
    except FileNotFoundError:
        return
    except UnexpectedEntryError as error:
        raise OSError(str(error)) from error


def _content(there: HeldFolder, name: str, *, source: Path, max_bytes: int) -> BinaryIO:
    """The file that is published as `name` of a model."""
    if _WEIGHTS.fullmatch(name):
        return there.file(name, max_bytes=max_bytes)
    if name in _ITS_OWN:
        return there.file(name, max_bytes=min(max_bytes, MAX_SMALL_FILE_BYTES))
    if "/" not in name and (source / name).is_file():
        return (source / name).open("rb")
    raise UnexpectedEntryError(f"{name!r:.100} is no part of a model")


def _copy(
    stream: BinaryIO,
    target: HeldFolder,
    name: str,
    *,
    max_bytes: int,
    on_copied: Callable[[int], None],
) -> int:
    """Write what `stream` has as a new file; how many bytes."""
    num_bytes = 0
    with open(target.new_file(name), "wb") as copy:  # noqa: PTH123  a descriptor
        while part := stream.read(_COPY_BYTES):
            num_bytes += len(part)
            if num_bytes > max_bytes:
                raise UnexpectedEntryError(f"{name!r:.100} grows while it is read")
            copy.write(part)
            on_copied(len(part))
    return num_bytes


@contextmanager
def _distrusting() -> Iterator[None]:
    """Turn what a child should not have left into the end of its job."""
    try:
        yield
    except (UnexpectedEntryError, FileNotFoundError) as error:
        what = error if isinstance(error, UnexpectedEntryError) else "a file or folder is missing"
        raise distrusted(str(what)) from error
