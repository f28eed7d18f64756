"""A job's folder: the runner's own files, and `work` and `scratch`, where its child may write.

The child is not trusted once it has read a file from outside. The runner never follows a link
there, reads no more than it expects, and copies the files that it continues with out of the
child's reach.
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
    "FACTS",
    "MAX_TEXT_BYTES",
    "MODELS",
    "SCRATCH",
    "WINDOWS",
    "WORK",
    "JobFolder",
    "remove_folder",
]

WORK = "work"
"""Emptied before every step; a step leaves its result there."""

SCRATCH = "scratch"
"""The child's home and its temporary files, among them the code that MLX compiles for this job."""

MODELS = "models"
"""The child's models in `work`; beside it the runner's, once they are copied."""

WINDOWS = "windows.json"
"""Token windows of both texts, cut by the first step that measures."""

FACTS = "facts"
"""In `work`: a folder for each model, with the plan and the report for its card."""

_COPIED = "models-copied"
_COPY_BYTES = 1 << 24
MAX_TEXT_BYTES = 32_000_000
"""Of a cost table or a plan; those of the largest models have a few million."""

_WEIGHTS = re.compile(r"(model(-\d{5,9}-of-\d{5,9})?|mtp)\.safetensors")
_WRITTEN_BY_CHILD = frozenset({"config.json", "model.safetensors.index.json"})


class JobFolder:
    """The folder of one job.

    Args:
        path: Of the folder; its parents are writable for the runner alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def work(self) -> Path:
        """The child leaves its results here."""
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
        """Make the folder if it is missing."""
        self.path.mkdir(parents=True, exist_ok=True)

    def renew_work(self) -> None:
        """Empty `work` for the next step."""
        with HeldFolder.open(self.path) as held:
            held.remove(WORK)
            for name in (WORK, SCRATCH):
                held.folder(name, make=True).close()

    def has(self, *names: str) -> bool:
        """Whether the runner has a file or a folder at the path of `names`."""
        *folders, last = names
        try:
            with HeldFolder.open(self.path, *folders) as held:
                return held.has(last)
        except FileNotFoundError:
            return False

    def read(self, name: str) -> str | None:
        """A file that the runner has written; None if there is none."""
        with _distrusting(), HeldFolder.open(self.path) as held:
            return held.read_text(name, max_bytes=2 * MAX_TEXT_BYTES)

    @contextmanager
    def written(self, name: str) -> Iterator[TextIO]:
        """A stream that becomes a file of the runner when it ends without an error."""
        with HeldFolder.open(self.path) as held, held.written(name) as stream:
            yield stream

    def write(self, name: str, content: str) -> None:
        """Write a file of the runner, atomically."""
        with self.written(name) as stream:
            stream.write(content)

    def keep_windows(self) -> None:
        """Copy the token windows that a child may have left out of the reach of later children."""
        with _distrusting(), HeldFolder.open(self.path, WORK) as held:
            windows = held.read_text(WINDOWS, max_bytes=MAX_TEXT_BYTES)
        if windows is not None:
            self.write(WINDOWS, windows)

    def left_by_child(self, *names: str) -> str:
        """The text of the file in `work` at the path of `names`.

        Raises:
            NeverPublishError: There is no file, or a link or a folder in its place.
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
        on_part: Callable[[], None],
    ) -> None:
        """Copy the models that the child encoded out of the reach of later children.

        The weights, their index and the config are the child's; all other files are copied from the
        original, which the child could only read. The folder gets its final name once all files
        are copied; each copied file is removed from `work`.

        Args:
            names: Of the models.
            source: Folder of the original.
            max_bytes: Of all files together.
            on_part: Called after each part that was copied, a few times a second.

        Raises:
            NeverPublishError: The child left other models or files.
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
                                left -= _copy(stream, here, file, max_bytes=left, on_part=on_part)
                            there.remove(file)
            held.move(_COPIED, held, MODELS)


def remove_folder(path: Path) -> None:
    """Remove a job's folder without following links in it.

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
    """The content of the file `name` of a model to publish."""
    if _WEIGHTS.fullmatch(name):
        return there.file(name, max_bytes=max_bytes)
    if name in _WRITTEN_BY_CHILD:
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
    on_part: Callable[[], None],
) -> int:
    """Copy `stream` to a new file; returns the number of bytes."""
    num_bytes = 0
    with open(target.new_file(name), "wb") as copy:  # noqa: PTH123  a descriptor
        while part := stream.read(_COPY_BYTES):
            num_bytes += len(part)
            if num_bytes > max_bytes:
                raise UnexpectedEntryError(f"{name!r:.100} grows while it is read")
            copy.write(part)
            on_part()
    return num_bytes


@contextmanager
def _distrusting() -> Iterator[None]:
    """End the job if the child left a file, folder or link that it should not have left."""
    try:
        yield
    except (UnexpectedEntryError, FileNotFoundError) as error:
        what = error if isinstance(error, UnexpectedEntryError) else "a file or folder is missing"
        raise distrusted(str(what)) from error
