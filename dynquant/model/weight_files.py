"""The weight files of a model that are in use: those that mlx-lm reads, without second copies.

mlx-lm reads every `model*.safetensors` and ignores the index. Here the index has two uses: to
distinguish the files in use from an older export beside them, and to notice missing files.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from dynquant.errors import InvalidModelError
from dynquant.model.files import INDEX, has_odd_name, is_weights
from dynquant.model.limits import require_few_values
from dynquant.model.notes import listed, note

__all__ = ["WeightFiles", "chosen_files", "is_settled", "weight_map_in"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """The weight files of one model.

    Attributes:
        read: The files in use, sorted.
        copies: Files beside those of the index that have some of the same tensors; not read.
        left_out: File → tensors of it that no file of `read` has.
    """

    read: tuple[str, ...]
    copies: tuple[str, ...]
    left_out: Mapping[str, tuple[str, ...]]

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on the files and tensors that are not read, for a log and a card."""
        notes = []
        if self.copies:
            notes.append(note("copies", listed(self.copies)))
        if left_out := [name for names in self.left_out.values() for name in names]:
            notes.append(note("unread", listed(left_out), listed([*self.left_out])))
        return tuple(notes)


def weight_map_in(index: str | bytes) -> dict[str, str]:
    """Tensor → file, from an index.

    Raises:
        InvalidModelError: The text is malformed, or larger than the index of any model.
    """
    require_few_values(index.encode() if isinstance(index, str) else index, INDEX)
    try:
        weight_map = json.loads(index)["weight_map"]
        files = {str(tensor): str(file) for tensor, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModelError(
            f"{INDEX} is not a valid index. Download that file again, or delete it: mlx-lm loads "
            "the weights without it."
        ) from error
    odd = [file for file in files.values() if "/" in file or has_odd_name(file)]
    if odd:
        raise InvalidModelError(
            f"The index names '{odd[0][:100]}', and weights lie at the top of a model's folder "
            "under plain names. Ask the model's author, or delete the index."
        )
    return files


def is_settled(files: Collection[str], weight_map: Mapping[str, str]) -> bool:
    """Whether all of `files` are in use by their names alone; else the headers decide.

    Args:
        files: Names of all `model*.safetensors`.
        weight_map: As for `chosen_files`.
    """
    named = set(filter(is_weights, weight_map.values()))
    return named == set(files) or (not named and len(files) == 1)


def chosen_files(
    tensors: Mapping[str, Collection[str]], weight_map: Mapping[str, str]
) -> WeightFiles:
    """The files in use.

    If the index is correct, these are its files, and other files that share no tensor with them. If
    a file lacks a tensor that the index places in it, the index is stale and all files are in use.

    Args:
        tensors: Name of each `model*.safetensors` → the tensors in it.
        weight_map: Tensor → file, from the index; empty without one.

    Raises:
        InvalidModelError: A tensor of the index is in no file, or a tensor is in two files and
            the index does not decide between them.
    """
    indexed = {tensor: file for tensor, file in weight_map.items() if is_weights(file)}
    is_true = all(tensor in tensors.get(file, ()) for tensor, file in indexed.items())
    used = set(indexed.values()) if is_true else set()
    of_used = {tensor for file in used for tensor in tensors[file]}
    copies = {file for file in tensors.keys() - used if not of_used.isdisjoint(tensors[file])}
    read = sorted(tensors.keys() - copies)
    placed = _placed(tensors, read)
    _require_all(indexed, tensors, placed)
    unread = {tensor: file for file in copies for tensor in tensors[file]} | dict(weight_map)
    left_out: dict[str, list[str]] = {}
    for tensor, file in unread.items():
        if tensor not in placed:
            left_out.setdefault(file, []).append(tensor)
    return WeightFiles(
        read=tuple(read),
        copies=tuple(sorted(copies)),
        left_out={file: tuple(sorted(left_out[file])) for file in sorted(left_out)},
    )


def _placed(tensors: Mapping[str, Collection[str]], read: Iterable[str]) -> dict[str, str]:
    """Tensor → its file, of the files that are read."""
    placed: dict[str, str] = {}
    for file in read:
        for tensor in tensors[file]:
            if (other := placed.setdefault(tensor, file)) != file:
                raise InvalidModelError(
                    f"Tensor '{tensor[:80]}' is both in '{other[:100]}' and in '{file[:100]}', and "
                    "mlx-lm would take the value of either. Remove the file that is not in use, or "
                    "ask the model's author."
                )
    return placed


def _require_all(
    indexed: Mapping[str, str],
    tensors: Mapping[str, Collection[str]],
    placed: Mapping[str, str],
) -> None:
    lost = {tensor: file for tensor, file in indexed.items() if tensor not in placed}
    if missing := sorted(set(lost.values()) - tensors.keys()):
        raise InvalidModelError(
            f"The index lists {len(missing)} weight file(s) that are not here, such as "
            f"'{missing[0][:100]}', and tensors in them are in no other file. Finish the download; "
            "if the source has no such file either, ask the model's author."
        )
    if lost:
        tensor, file = next(iter(lost.items()))
        raise InvalidModelError(
            f"The index places tensor '{tensor[:100]}' in '{file[:100]}', and no file has it. "
            "Take index and weights from one version of the model."
        )
