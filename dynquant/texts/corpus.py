"""Texts to measure on: local files, and datasets, which the caller's function opens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from dynquant.errors import HubUnavailableError, ImagesError, TextError
from dynquant.texts.documents import Document, MalformedChatError, Text, chat_of, well_formed
from dynquant.texts.image_files import checked, images_in_folder
from dynquant.texts.image_rows import images_in_rows
from dynquant.texts.images import ImagePrompts

__all__ = ["Corpus", "DatasetFiles"]

_DEFAULT_COLUMNS = ("messages", "text")
_LINES = (".jsonl", ".ndjson")
_TABLE = (".parquet",)
_TEXT_LIKE = (".txt", ".md", ".json", *_LINES, *_TABLE)
_PIECE_BYTES = 16 * 2**20
"""A larger text is cut at the next end of a line, so that it need not fit in memory."""
_MAX_LINE_BYTES = 64 * 2**20
"""A longer line is refused in a file of JSON objects, and cut in a plain text."""
_CONTINUATIONS = range(0x80, 0xC0)  # bytes of UTF-8 that begin no character
_BATCH_ROWS = 256
_NUM_LISTED = 30
_TOOLS, _TEMPLATE_KWARGS = "tools", "chat_template_kwargs"
"""Columns beside a chat, with the names that trl and its datasets use."""


class DatasetFiles(Protocol):
    """A dataset as parquet files."""

    @property
    def name(self) -> str:
        """Its name, without the column."""
        ...

    @property
    def column(self) -> str | None:
        """The requested column; None if the request names no column."""
        ...

    @property
    def files(self) -> Sequence[Callable[[], BinaryIO]]:
        """Each opens one file."""
        ...


class Corpus:
    """Opens texts: local files and Hub datasets.

    Args:
        open_dataset: Opens `org/name:config:split:column`.
        allow_files: Whether local files are opened too; False for requests of strangers.
    """

    def __init__(
        self, *, open_dataset: Callable[[str], DatasetFiles], allow_files: bool = True
    ) -> None:
        self._open_dataset = open_dataset
        self._allow_files = allow_files

    def open(self, source: str) -> Text:
        """The text that `source` names.

        `chats.jsonl` (an object per line) or `chats.parquet`, each with or without `:column`, a
        dataset, or any other file, such as `notes.txt`, as one plain text in UTF-8. The default
        column is `messages` or `text`. Rows without text are skipped. Beside a chat, `tools` and
        `chat_template_kwargs` are read too.

        Raises:
            TextError: No such file or dataset, not UTF-8, no text in it, or no such column.
            HubUnavailableError: The dataset cannot be reached.
        """
        path, column = _local_file(source) if self._allow_files else (None, None)
        try:
            if path is not None:
                text = _text_of_file(path, column)
            else:
                text = self._text_of_dataset(source)
            is_empty = next(text.documents(), None) is None
        except HubUnavailableError as error:
            if not self._allow_files:
                raise
            raise HubUnavailableError(
                f"{error} The text '{source}' is a dataset on the Hub; a local file, passed to "
                "--calibration or --eval, needs no connection."
            ) from error
        if is_empty:
            raise TextError(f"There is no text in '{text.name}'. Pass another one.")
        return text

    def open_images(self, source: str, *, decode: bool = True) -> ImagePrompts:
        """The images that `source` names, with questions about them: a folder, or a dataset.

        Args:
            source: A folder, or a dataset and perhaps its column.
            decode: Whether to check that each opens; a runner leaves that to its child.

        Raises:
            ImagesError: No such folder or dataset, too few images, or one that cannot be read.
            HubUnavailableError: The dataset cannot be reached.
        """
        images = self._images(source)
        return checked(images) if decode else images

    def _images(self, source: str) -> ImagePrompts:
        folder = Path(source)
        if self._allow_files and source.strip() and _is(Path.is_dir, folder):
            return images_in_folder(folder)
        is_file = self._allow_files and _is(Path.is_file, folder)
        if is_file or _is_path(source):
            found = f"'{source}' is a file." if is_file else f"There is no folder '{source}'."
            raise ImagesError(
                f"{found} Pass a folder of png, jpg or webp images, or a dataset on the Hub as "
                "'org/name:config:split:column'."
            )
        try:
            dataset = self._open_dataset(source)
        except TextError as error:
            raise ImagesError(str(error)) from error
        name = f"{dataset.name}:{dataset.column}" if dataset.column else dataset.name
        return images_in_rows(dataset.files, dataset.column, name)

    def _text_of_dataset(self, source: str) -> Text:
        dataset = self._open_dataset(source)
        column = dataset.column or _default_column(dataset.files[0], dataset.name)
        return Text(
            name=f"{dataset.name}:{column}",
            documents=partial(_table_documents, dataset.files, column, dataset.name),
        )


def _local_file(source: str) -> tuple[Path | None, str | None]:
    """The file and the column that `source` names; None for the file if it may be a dataset."""
    path = Path(source)
    if source and _is(Path.is_file, path):
        return path, None
    head, _, column = source.rpartition(":")
    path = Path(head)
    if head and column and _is(Path.is_file, path):
        if path.suffix.lower() in (*_LINES, *_TABLE):
            return path, column
        raise TextError(f"'{head}' has no columns; pass it without ':{column}'.")
    if source.strip() and _is(Path.is_dir, Path(source)):
        raise TextError(f"'{source}' is a folder. Pass a file in it, or a dataset on the Hub.")
    if _is_path(source) or Path(head or source).suffix.lower() in _TEXT_LIKE:
        raise TextError(
            f"There is no file '{source}'. Pass a .txt, .md, .jsonl or .parquet file, or a "
            "dataset on the Hub as 'org/name:config:split:column'."
        )
    return None, None


def _is_path(source: str) -> bool:
    """Whether `source` can be no dataset."""
    is_relative_or_absolute = source.startswith((".", "/", "~")) or source.endswith("/")
    return not source.strip() or is_relative_or_absolute or "\\" in source or source.count("/") > 1


def _is(kind: Callable[[Path], bool], path: Path) -> bool:
    try:
        return kind(path)
    except OSError:  # the name is too long
        return False


def _text_of_file(path: Path, column: str | None) -> Text:
    name = well_formed(path.name)  # bytes that are not UTF-8 cannot stand on a card
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256")
    except OSError as error:
        raise _unreadable(name) from error
    digest.update(repr(column).encode("utf-8", "backslashreplace"))
    return Text(
        name=f"{name}:{column}" if column else name,
        documents=_documents_of_file(path, column),
        source_sha256=digest.hexdigest(),
    )


def _documents_of_file(path: Path, column: str | None) -> Callable[[], Iterator[Document]]:
    if path.suffix.lower() in _LINES:
        return partial(_line_documents, path, column)
    if path.suffix.lower() in _TABLE:
        open_file: Callable[[], BinaryIO] = lambda: path.open("rb")  # noqa: E731
        column = column or _default_column(open_file, path.name)
        return partial(_table_documents, [open_file], column, path.name)
    return partial(_text_documents, path)


def _text_documents(path: Path) -> Iterator[str]:
    offset = 0
    try:
        with path.open("rb") as stream:
            rest = b""
            while piece := rest + stream.read(_PIECE_BYTES):
                piece += (line := stream.readline(_MAX_LINE_BYTES))
                is_cut = len(line) == _MAX_LINE_BYTES
                piece, rest = _cut_between_characters(piece) if is_cut else (piece, b"")
                text = _decoded(piece, path.name, offset)
                if offset == 0:
                    text = text.removeprefix("\ufeff")
                if text.strip():
                    yield text
                offset += len(piece)
    except OSError as error:
        raise _unreadable(path.name) from error


def _cut_between_characters(piece: bytes) -> tuple[bytes, bytes]:
    """`piece` without its last character in UTF-8, which may be incomplete, and that character."""
    size = next((n for n in range(1, 4) if piece[-n] not in _CONTINUATIONS), 4)
    return piece[:-size], piece[-size:]


def _line_documents(path: Path, column: str | None) -> Iterator[Document]:
    offset = 0
    try:
        with path.open("rb") as stream:
            lines = iter(partial(stream.readline, _MAX_LINE_BYTES + 1), b"")
            for number, line in enumerate(lines, 1):
                where = f"Line {number} of '{path.name}'"
                if len(line) > _MAX_LINE_BYTES:
                    raise TextError(
                        f"{where} is longer than {_MAX_LINE_BYTES >> 20} MiB. Write one object "
                        "per line, or pass the text as a .txt file."
                    )
                row = _row(_decoded(line, path.name, offset), where)
                offset += len(line)
                if row is None:
                    continue
                column = column or _chosen(row, where)
                if column not in row:
                    raise _no_column(where, column, row)
                document = _document(row[column], f"{where}, '{column}',", beside=row)
                if document is not None:
                    yield document
    except OSError as error:
        raise _unreadable(path.name) from error


def _row(line: str, where: str) -> dict[str, Any] | None:
    line = line.removeprefix("\ufeff").strip()
    if not line:
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise TextError(f'{where} is not a JSON object such as {{"text": "…"}}.')
    return row


def _table_documents(
    files: Sequence[Callable[[], BinaryIO]], column: str, name: str
) -> Iterator[Document]:
    """The documents, read row group by row group, and only as far as they are consumed."""
    number = 0
    try:
        for open_file in files:
            with open_file() as stream, pq.ParquetFile(stream, pre_buffer=False) as table:
                schema = table.schema_arrow
                if column not in schema.names:
                    raise _no_column(f"'{name}'", column, schema.names)
                columns = [column]
                if pa.types.is_nested(schema.field(schema.names.index(column)).type):
                    columns += [each for each in (_TOOLS, _TEMPLATE_KWARGS) if each in schema.names]
                for group in range(table.num_row_groups):
                    for batch in table.iter_batches(
                        _BATCH_ROWS, row_groups=[group], columns=columns, use_threads=False
                    ):
                        for row in range(batch.num_rows):
                            number += 1
                            where = f"Row {number} of '{name}', '{column}',"
                            values = {each: _value(batch, each, row, where) for each in columns}
                            document = _document(
                                values[column], where, beside=values, drop_nulls=True
                            )
                            if document is not None:
                                yield document
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(name) from error


def _default_column(open_file: Callable[[], BinaryIO], name: str) -> str:
    try:
        with open_file() as stream, pq.ParquetFile(stream, pre_buffer=False) as table:
            columns = table.schema_arrow.names
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(name) from error
    return _chosen(columns, f"'{name}'")


def _chosen(columns: Sequence[str] | Mapping[str, Any], where: str) -> str:
    for column in _DEFAULT_COLUMNS:
        if column in columns:
            return column
    raise TextError(
        f"{where} has neither 'messages' nor 'text'. Name the column after a colon; there are: "
        f"{_listed(columns)}."
    )


def _value(batch: pa.RecordBatch, column: str, row: int, where: str) -> Any:
    try:
        return batch.column(batch.schema.names.index(column))[row].as_py()
    except UnicodeDecodeError as error:  # Arrow accepts any bytes as text
        raise TextError(f"{where} is not UTF-8 text. Pass another text.") from error


def _document(
    value: Any, where: str, *, beside: Mapping[str, Any], drop_nulls: bool = False
) -> Document | None:
    """A text or a chat; None if it is empty.

    Args:
        value: The value of the column.
        where: The row, for an error.
        beside: The whole row, which may have further inputs of the chat's template.
        drop_nulls: Whether null means a missing key, as in tables.
    """
    if value is None or value == []:
        return None
    if isinstance(value, str):
        return well_formed(value) if value.strip() else None
    if not isinstance(value, list):
        raise TextError(f"{where} is neither a text nor a chat but {type(value).__name__}.")
    try:
        return chat_of(
            value,
            tools=beside.get(_TOOLS),
            template_kwargs=beside.get(_TEMPLATE_KWARGS),
            drop_nulls=drop_nulls,
        )
    except MalformedChatError as error:
        raise TextError(f"{where} {error}") from error


def _decoded(content: bytes, name: str, offset: int) -> str:
    try:
        return content.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise TextError(
            f"'{name}' is not UTF-8 text: byte {offset + error.start} cannot be read. Save it as "
            "UTF-8, or pass another file."
        ) from error


def _no_column(where: str, column: str, columns: Sequence[str] | Mapping[str, Any]) -> TextError:
    return TextError(f"{where} has no column '{column}'. There are: {_listed(columns)}.")


def _listed(columns: Sequence[str] | Mapping[str, Any]) -> str:
    names = [name[:100] for name in columns]
    more = len(names) - _NUM_LISTED
    return ", ".join(names[:_NUM_LISTED]) + (f" and {more} more" if more > 0 else "")


def _unreadable(name: str) -> TextError:
    return TextError(f"'{name}' cannot be read; it may be damaged, or no file of that kind.")
