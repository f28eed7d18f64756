"""The files of a model that are fetched, and those that a quantized model takes over, by name.

One definition for repos and folders, so that a quant of either carries the same files. The names
are those that transformers and mlx-lm open, and the spellings of license texts in public repos.
"""

from __future__ import annotations

import re

from dynquant.errors import InvalidModelError

__all__ = [
    "CONFIG",
    "DRAFTING",
    "INDEX",
    "LFS_POINTER",
    "TEMPLATES",
    "has_odd_name",
    "is_fetched",
    "is_subfolder",
    "is_taken_over",
    "is_weights",
    "lfs_pointer_found",
]

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
DRAFTING = "mtp.safetensors"
"""Heads that draft tokens, outside the index: stock loaders skip this file."""
TEMPLATES = "additional_chat_templates"
"""Folder of the named chat templates, a file each, as transformers saves them."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
"""First bytes of the pointer that git holds in place of a file in Git LFS."""

_MAX_NAME = 200

# Read, and then rewritten or left out in a quantized model.
_READ_ONLY = frozenset({CONFIG, INDEX, "hf_quant_config.json", "README.md"})

# With DOTALL, since mlx-lm's own pattern matches line breaks too.
_WEIGHTS = re.compile(r"model.*\.safetensors", re.DOTALL)
_TOKENIZER = re.compile(
    r".+\.(model|spm|tiktoken|tokenizer|codes|bpe|jinja)"
    r"|tokenizer\.model\.\w+"  # `tokenizer.model.v3` of Mistral
    r"|.*(tokenizer|tekken|vocab|merges|added_tokens|special_tokens|processor|chat_template).*"
    r"\.(json|jsonl|txt)"
    r"|generation_config\.json"
    # Opened by a few tokenizers of transformers beside their vocabulary.
    r"|dict\.txt|(normalizer|byte_maps|emoji|word_shape|word_pronunciation)\.json",
    re.DOTALL,
)
_LEGAL_WORD = re.compile(
    r"licen[cs]e|copying|copyright|notice|attribution|acknowledg|agreement|us(e|age)[ _-]?policy"
    r"|许可|协议|(?<![a-z])(terms|eula|legal|patents)(?![a-z])"
)
_DOCUMENT = re.compile(
    r"txt|md|markdown|rst|rtf|pdf|html?|docx?|odt"
    # `LICENSE.MIT`, `COPYING.LESSER`, `LICENSE-APACHE-2.0`
    r"|(mit|apache|bsd|[al]?gpl|mpl|cc)[\w-]*|lesser|code|\d+"
)
_LICENSES = re.compile(r"licen[cs]es?")


def is_weights(name: str) -> bool:
    """Whether mlx-lm reads weights from this file; it must be at the top of the model's folder."""
    return "/" not in name and _WEIGHTS.fullmatch(name) is not None


def is_taken_over(name: str) -> bool:
    """Whether a quantized model takes over this file of its source: tokenizer, templates, license.

    Never weights, Python code or the card.

    Args:
        name: Path within the model's folder, with `/`.

    >>> is_taken_over("tekken.json"), is_taken_over("MODEL_LICENSE"), is_taken_over("model.py")
    (True, True, False)
    """
    folder, _, file = name.rpartition("/")
    if not file or file.startswith(".") or name in _READ_ONLY:
        return False
    if folder == TEMPLATES:
        return file.endswith(".jinja")
    if folder:
        return is_subfolder(folder) and _is_document(file)
    return bool(
        _TOKENIZER.fullmatch(file) or (_LEGAL_WORD.search(file.lower()) and _is_document(file))
    )


def is_subfolder(name: str) -> bool:
    """Whether files in this folder within a model's may be taken over."""
    return name == TEMPLATES or _LICENSES.fullmatch(name.lower()) is not None


def is_fetched(name: str) -> bool:
    """Whether this file of a repo is needed: taken over, or read for the quantized model.

    `model.weight_files` decides which weight files are needed.
    """
    return name in _READ_ONLY or is_taken_over(name)


def has_odd_name(name: str) -> bool:
    """Whether a file's name is too long or has invisible characters, as no regular model's does."""
    return len(name) > _MAX_NAME or not name.isprintable()


def lfs_pointer_found(name: str) -> InvalidModelError:
    """The error for a file that begins with `LFS_POINTER`."""
    return InvalidModelError(
        f"'{name[:100]}' is a pointer of Git LFS and not the file itself, as a clone without Git "
        "LFS leaves it. Run 'git lfs pull' in the clone; if the pointer is in the repo, ask its "
        "owner to upload the file."
    )


def _is_document(file: str) -> bool:
    _, dot, suffix = file.lower().rpartition(".")
    return not dot or _DOCUMENT.fullmatch(suffix) is not None
