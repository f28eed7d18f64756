"""Names of quantized models, and of who asks for them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

from dynquant.errors import InvalidOptionError

__all__ = [
    "MAX_NAME_LENGTH",
    "WATCHER",
    "check_repo_id",
    "local_name",
    "quantized_name",
    "repo_ids",
]

MAX_NAME_LENGTH = 96
"""Longest repo name that the Hub takes (`huggingface_hub.utils.validate_repo_id`)."""

WATCHER = "the watcher"
"""Who asks for what nobody asked for; as `local_name`, no account on the Hub is called so."""

# What `huggingface_hub.utils.validate_repo_id` takes.
_NAME = re.compile(
    r"(?!.*(?:--|\.\.))(?!.*\.git$)[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
)

_TARGET_DECIMALS = 4
"""Enough for any target that a person would type; what lies beyond is float noise."""


def local_name(user: str) -> str:
    """Who asks on a machine itself: an account of the same name on the Hub is somebody else."""
    return f"local:{user}"


def quantized_name(source: str, target_bpw: float) -> str:
    """Default name of `source` quantized to `target_bpw`: `Qwen3-8B-MLX-4.5bpw`.

    The result is always a name that the Hub takes.

    Args:
        source: Repo id, or name of a folder.
        target_bpw: Requested bits per weight.
    """
    suffix = f"-MLX-{_plain_decimal(target_bpw)}bpw"
    model = _repo_characters(re.split(r"[/\\]", source.rstrip("/\\"))[-1])
    return model[: MAX_NAME_LENGTH - len(suffix)].rstrip("-.") + suffix


def repo_ids(destination: str, targets: Mapping[str, tuple[str, float]]) -> dict[str, str]:
    """Name of a quantized model → the repo that it is published as.

    Args:
        destination: A namespace, for the default names in it, or a repo id, in which `{model}`
            and `{bpw}` stand for the source's name and the requested bits per weight.
        targets: Name → source and requested bits per weight.

    Raises:
        InvalidOptionError: It makes no repo ids, or the same one for two models.
    """
    ids = {}
    for name, (source, target_bpw) in targets.items():
        repo_id = f"{destination}/{name}"
        if "/" in destination:
            model = _repo_characters(re.split(r"[/\\]", source)[-1])
            repo_id = destination.replace("{model}", model)
            repo_id = repo_id.replace("{bpw}", _plain_decimal(target_bpw))
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


def check_repo_id(repo_id: str, hint: str = "Pass one such as 'you/model'") -> None:
    """Refuse what the Hub would not take.

    Raises:
        InvalidOptionError: It cannot be the id of a repo; `hint` says what to do.
    """
    namespace, _, name = repo_id.partition("/")
    if not (_NAME.fullmatch(namespace) and _NAME.fullmatch(name)):
        raise InvalidOptionError(
            f"'{repo_id[:200]}' cannot be the id of a repo. {hint}; names have letters, digits, "
            f"'-', '_' and '.', and at most {MAX_NAME_LENGTH} characters."
        )


def _plain_decimal(value: float) -> str:
    """`value` with one decimal at least and no trailing zeros."""
    whole, _, decimals = f"{value:.{_TARGET_DECIMALS}f}".partition(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def _repo_characters(text: str) -> str:
    """`text` in the characters of a repo name; `model` when nothing is left."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii")
    joined = re.sub(r"[^A-Za-z0-9._-]+", "-", ascii_text)
    single = re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", joined))
    return single.strip("-.") or "model"
