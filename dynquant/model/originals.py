"""Which source in low precision is an original: the model's own publisher stores it so.

DeepSeek ships float8, OpenAI MXFP4, Moonshot int4: nothing better exists, so they are taken like
any other model. A quant of another publisher's model is refused, and its base model is named:
quantizing it would add a second error to the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dynquant.errors import QuantizedSourceError
from dynquant.model.publishers import is_well_known

__all__ = [
    "is_low_precision",
    "is_quant_name",
    "quantized_from_card",
    "quantized_from_tags",
    "require_original",
]

_LOW_PRECISION = frozenset(
    {
        *("compressed-tensors", "float8", "float8 (FBGEMM)", "float8 (F8_E4M3)", "int8 (I8)"),
        *("MXFP4", "MXFP8", "NVFP4", "NVIDIA ModelOpt"),
    }
)
"""Forms of `quantized_form` that a publisher trains or ships in; all others are a quantizer's."""
_QUANT_TAG = "base_model:quantized:"
"""Of the Hub, before the base model."""
_QUANT_NAME = re.compile(
    r"(?:^|[-_.])(?:gguf|ggml|gptq|awq|exl[23]|mlx|bnb|onnx|w[48]a(?:8|16)|(?:int|fp|nvfp|mxfp|nf)[48]"
    r"|[1-8]-?bits?|[\d.]+bpw|i?q[1-8]_[\dk]\w*)(?:$|[-_.])",
    re.IGNORECASE,
)


def is_low_precision(form: str | None) -> bool:
    """Whether models are published in `form`, as `quantized_form` names it, by their makers."""
    return form in _LOW_PRECISION


def is_quant_name(repo_id: str) -> bool:
    """Whether the name of a repo says that it is a quant: `somebody/Qwen3-8B-FP8`."""
    return _QUANT_NAME.search(repo_id.rpartition("/")[2]) is not None


def quantized_from_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """The models that a repo is a quant of, by the Hub's tags."""
    return tuple(tag.removeprefix(_QUANT_TAG) for tag in tags if tag.startswith(_QUANT_TAG))


def quantized_from_card(card: Mapping[str, Any]) -> tuple[str, ...]:
    """The models that a repo or folder is a quant of, by the metadata of its card."""
    if card.get("base_model_relation") != "quantized":
        return ()
    bases = card.get("base_model")
    named = bases if isinstance(bases, list) else [bases]
    return tuple(base for base in named if isinstance(base, str) and base)


def require_original(
    name: str, *, form: str | None = None, quantized_from: tuple[str, ...] = ()
) -> None:
    """Refuse a quant that somebody made of another publisher's model.

    Args:
        name: Repo id, or the name of a local folder.
        form: The form that its weights are quantized in; None if they are plain or it is unknown.
        quantized_from: The models that its card says it is a quant of.

    Raises:
        QuantizedSourceError: It is no original; names the base model where that is known.

    >>> require_original("deepseek-ai/DeepSeek-V3", form="float8")
    >>> require_original("me/V3-FP8", form="float8", quantized_from=("deepseek-ai/DeepSeek-V3",))
    Traceback (most recent call last):
    ...
    dynquant.errors.QuantizedSourceError: 'me/V3-FP8' is a quant of 'deepseek-ai/DeepSeek-V3' ...
    """
    owner, is_repo, _ = name.lower().partition("/")
    foreign = [base for base in quantized_from if base.lower().partition("/")[0] != owner]
    says_so = is_repo and is_quant_name(name) and not quantized_from and not is_well_known(owner)
    if foreign or (form is not None and (says_so or not is_low_precision(form))):
        raise QuantizedSourceError(
            name, form=form or "", base_model=next(iter([*foreign, *quantized_from]), "")
        )
