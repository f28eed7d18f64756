"""Names of quantized models, of their repos, and of requesters."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from urllib.parse import urlsplit

from dynquant.errors import InvalidOptionError
from dynquant.model.publishers import is_well_known

__all__ = [
    "MAX_NAME_LENGTH",
    "TARGET_DECIMALS",
    "WATCHER",
    "check_repo_id",
    "is_account_name",
    "is_ours",
    "local_name",
    "quantized_name",
    "repo_ids",
    "repo_in",
]

MAX_NAME_LENGTH = 96
"""Longest repo name that the Hub accepts (`huggingface_hub.utils.validate_repo_id`)."""

WATCHER = "the watcher"
"""The requester of the watcher's jobs; like `local_name`, not a possible account on the Hub."""

# As `huggingface_hub.utils.validate_repo_id`.
_NAME = re.compile(
    r"(?!.*(?:--|\.\.))(?!.*\.git$)[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
)

_AUTHORS = "__"
"""Between the author and the model; names without an author never contain it."""

_PAGES = ("huggingface.co/", "hf.co/")
"""Begin an address without its scheme."""

TARGET_DECIMALS = 4
"""Enough for every target that a person types; further digits are float noise."""


def local_name(user: str) -> str:
    """The requester for a user of this machine, distinct from a Hub account of the same name."""
    return f"local:{user}"


def is_ours(requester: str) -> bool:
    """Whether the requester is a user of this machine, or its watcher."""
    return requester == WATCHER or requester.startswith(local_name(""))


def is_account_name(requester: str) -> bool:
    """Whether an account on the Hub may have this name; never true where `is_ours` is."""
    return bool(_NAME.fullmatch(requester))


def quantized_name(source: str, target_bpw: float) -> str:
    """Default name of `source` quantized to `target_bpw`: `Qwen3-8B-MLX-4.5bpw`.

    The Hub always accepts the result.

    Args:
        source: Repo id, or name of a folder.
        target_bpw: Requested bits per weight.
    """
    return _suffixed(_last_part(source), _suffix(target_bpw))


def repo_ids(
    destination: str, targets: Mapping[str, tuple[str, float]], *, variant: str = ""
) -> dict[str, str]:
    """Name of a quantized model → the repo that it is published as.

    The author of the source is part of the repo's name, `author__model`, unless the author is well
    known or owns the namespace: two models of one name must not compete for one repo.

    Args:
        destination: A namespace, for the default names in it, or a repo id, in which `{model}`
            and `{bpw}` stand for the source's name and the requested bits per weight.
        targets: Name → source and requested bits per weight.
        variant: Appended to the repo's name, see `quant.recipe.variant_of`.

    Raises:
        InvalidOptionError: `destination` makes invalid repo ids, or one repo id for two models.
    """
    ids = {}
    namespace, is_template, _ = destination.partition("/")
    end = f"-{variant}" if variant else ""
    for name, (source, target_bpw) in targets.items():
        model = _model_name(source, namespace=namespace)
        if is_template:
            repo_id = destination.replace("{model}", _repo_characters(model))
            repo_id = repo_id.replace("{bpw}", _plain_decimal(target_bpw)) + end
        else:
            repo_id = f"{namespace}/{_suffixed(model, _suffix(target_bpw) + end)}"
        check_repo_id(
            repo_id, "Pass a namespace, such as 'you', or a repo id, such as 'you/{model}-{bpw}bpw'"
        )
        ids[name] = repo_id
    if len(set(ids.values())) < len(ids):
        raise InvalidOptionError(
            f"'{destination}' is one repo, and there are {len(ids)} models to publish. Put "
            "{bpw} into its name, or pass a namespace alone."
        )
    return ids


def repo_in(text: str) -> str:
    """The `org/name` in a pasted address of a model's page, else the text without outer spaces.

    >>> repo_in(" https://huggingface.co/Qwen/Qwen3-8B/tree/main ")
    'Qwen/Qwen3-8B'
    """
    typed = text.strip()
    if not ("://" in typed or typed.startswith(_PAGES)):
        return typed
    try:
        path = urlsplit(typed if "://" in typed else f"https://{typed}").path
    except ValueError:  # brackets that hold no IPv6 address
        return typed
    return "/".join(path.strip("/").split("/")[:2])


def check_repo_id(repo_id: str, hint: str = "Pass one such as 'you/model'") -> None:
    """Refuse an id that the Hub would not accept.

    Raises:
        InvalidOptionError: It cannot be the id of a repo; `hint` is part of the message.
    """
    namespace, _, name = repo_id.partition("/")
    if not (_NAME.fullmatch(namespace) and _NAME.fullmatch(name)):
        raise InvalidOptionError(
            f"'{repo_id[:200]}' cannot be the id of a repo. {hint}; names have letters, digits, "
            f"'-', '_' and '.', and at most {MAX_NAME_LENGTH} characters."
        )


def _model_name(source: str, *, namespace: str) -> str:
    """The name of `source` in the repo of its quant in `namespace`.

    A single `_` would be ambiguous: the model `6b` of an account `stablelm-2-1` is not
    `stablelm-2-1_6b` of Stability AI.
    """
    author, slash, model = source.partition("/")
    is_unambiguous = is_well_known(author) or author.lower() == namespace.lower()
    if not slash or (is_unambiguous and _AUTHORS not in model):
        return _last_part(source)
    return f"{author}{_AUTHORS}{_last_part(source)}"


def _last_part(source: str) -> str:
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1]


def _suffix(target_bpw: float) -> str:
    return f"-MLX-{_plain_decimal(target_bpw)}bpw"


def _suffixed(model: str, suffix: str) -> str:
    """`model` in the characters of a repo name, cut to leave room for `suffix`."""
    return _repo_characters(model)[: MAX_NAME_LENGTH - len(suffix)].rstrip("-.") + suffix


def _plain_decimal(value: float) -> str:
    """`value` with at least one decimal and no trailing zeros."""
    whole, _, decimals = f"{value:.{TARGET_DECIMALS}f}".partition(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def _repo_characters(text: str) -> str:
    """`text` in the characters of a repo name; `model` when nothing is left."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    joined = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_text)
    single = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", joined))
    return single.strip("-.") or "model"
