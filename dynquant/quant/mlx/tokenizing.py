"""Open a model's tokenizer, and check that the files of another folder make the same one."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlx_lm.utils import load_config, load_tokenizer

from dynquant.errors import InvalidModelError, Reason, UnsupportedModelError
from dynquant.quant.mlx.folder import taken_over

__all__ = ["open_tokenizer", "require_same_tokenizer"]

# The words of transformers' errors.
_NEEDS_PACKAGE = re.compile(r"pip install `?([\w.-]*\w)")
_OWN_CODE = "custom code"
_NO_VOCABULARY = "Couldn't instantiate the backend tokenizer"
_FALLBACK = "tiktoken"  # the error names it for every file that is no SentencePiece model
_MAX_NAMED = 6
_MAX_REASON_CHARS = 200
_MAX_RENDERED_CHARS = 1 << 20

_TEXTS = {
    "ordinary text": "The café isn't far; she'll say: “It's 5 o'clock” (perhaps). <b>Naïve</b>?",
    "digits": "0 7 42 123 2026 1234567890 3.14159 1,000,000 1e-5 0x1F ٣٤ ४५ Ⅷ ½ x²",
    "whitespace": " a  b   c\td\t\te\n\nf\r\n g\n \n\n\nh\u00a0i\u2003j\u3000k    ",
    "code": "def f(x: int) -> str:\n    return f'{x!r}'  # ok\n\tif (a[i] != ~c) { d->e(); }\n",
    "other scripts": "Привет мир Ελλάδα שלום مرحبا नमस्ते สวัสดี 안녕 cafe\u0301 ﬁ ʼn",  # noqa: RUF001
    "CJK": "你好，世界。日本語のテキストと漢字。繁體中文「引號」ｶﾀｶﾅ１２３",  # noqa: RUF001
    "emoji": "🙂🙂 👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪 ☃️ 𝒳 \U0001faf6",  # noqa: RUF001
}
# Primes, so that every low byte occurs; planes 4 to 13 are empty.
_STEPS = {0: 17, 1: 61, 2: 61, 3: 251}
_STEP_OF_EMPTY_PLANES = 1021
_SURROGATES = range(0xD800, 0xE000)

_CHAT = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4."},
    {"role": "user", "content": "Grüße 🙂"},
]
_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of today.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
_CHATS: Mapping[str, Mapping[str, Any]] = {
    "a chat": {"conversation": _CHAT},
    "a chat with a system prompt": {
        "conversation": [{"role": "system", "content": "Be brief."}, *_CHAT]
    },
    "a chat with tools": {"conversation": _CHAT, "tools": [_TOOL]},
}

_SAVE_IT = (
    "Save the tokenizer with save_pretrained of transformers at the top of the model's folder, or "
    "ask the model's author for a tokenizer.json."
)

_Probe = tuple[str, Callable[[], object]]


def open_tokenizer(folder: Path) -> Any:
    """The model's tokenizer as stock mlx-lm opens it, without running code from the model.

    Raises:
        InvalidModelError: The model has no tokenizer, or it cannot be opened.
        UnsupportedModelError: It is Python code, or needs a package that is not installed.
    """
    logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    try:
        eos_token_ids = load_config(folder).get("eos_token_id")
        # Without it transformers asks at the terminal whether to run the model's code.
        tokenizer = load_tokenizer(
            folder, {"trust_remote_code": False}, eos_token_ids=eos_token_ids
        )
        knows_text = bool(tokenizer.encode("a", add_special_tokens=False))
    except (
        BaseException
    ) as error:  # transformers and its libraries raise any error, panics of Rust too
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise _refusal(folder, error) from error
    # Without files of a tokenizer, transformers may make a tokenizer without a vocabulary.
    if not knows_text:
        raise _no_tokenizer(taken_over(folder))
    return tokenizer


def require_same_tokenizer(source: Any, copy: Path) -> None:
    """Refuse a copy of a tokenizer's files that makes another tokenizer.

    Args:
        source: The tokenizer of the original.
        copy: Folder with the files of a quantized model beside its weights.

    Raises:
        UnsupportedModelError: Names what differs.
    """
    try:
        copied = open_tokenizer(copy)
    except (InvalidModelError, UnsupportedModelError) as error:
        raise UnsupportedModelError(
            "The tokenizer of this model opens from its own folder and not from a copy of its "
            f"files, so it reads a file that a quantized model would not have. {_SAVE_IT}"
        ) from error
    for (what, of_source), (_, of_copy) in zip(_probes(source), _probes(copied), strict=False):
        expected = _outcome(of_source)
        # A template may print the time, and then differs from call to call.
        if _outcome(of_copy) != expected and _outcome(of_source) == expected:
            raise UnsupportedModelError(
                f"A copy of this model's tokenizer differs from it in its {what}, so the quantized "
                f"model would not read text as the original does. {_SAVE_IT}"
            )


def _probes(tokenizer: Any) -> Iterator[_Probe]:
    """Name → value to compare; each is comparable where all before it are equal."""
    yield "vocabulary", tokenizer.get_vocab
    yield "special tokens", partial(_special_tokens, tokenizer)
    yield "tool calls or thinking", partial(_markers, tokenizer)
    added = sorted(map(str, tokenizer.get_added_vocab()))
    texts = {**_TEXTS, **_planes(), "its own tokens": "".join(f" a{token}b" for token in added)}
    for kind, text in texts.items():
        yield f"tokens of {kind}", partial(_encoded, tokenizer, text)
    templates = tokenizer.chat_template
    yield "chat templates", lambda: templates
    if not tokenizer.has_chat_template:
        return
    for name in sorted(templates) if isinstance(templates, dict) else [None]:
        named = "chat template" if name is None else f"chat template '{name[:50]}'"
        for kind, chat in _CHATS.items():
            yield f"{named} for {kind}", partial(_rendered, tokenizer, name, chat)


def _outcome(probe: Callable[[], object]) -> object:
    """The result of a probe, or the class of its error."""
    try:
        return probe()
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return type(error).__name__


def _special_tokens(tokenizer: Any) -> object:
    return dict(tokenizer.special_tokens_map), tokenizer.eos_token_ids, tokenizer.get_added_vocab()


def _markers(tokenizer: Any) -> object:
    return (
        tokenizer.tool_call_start,
        tokenizer.tool_call_end,
        tokenizer.think_start,
        tokenizer.think_end,
        type(tokenizer.detokenizer),
    )


def _encoded(tokenizer: Any, text: str) -> object:
    """Token ids with and without special tokens, and the text decoded from them."""
    whole = tokenizer.encode(text)
    return whole, tokenizer.encode(text, add_special_tokens=False), tokenizer.decode(whole)


def _rendered(tokenizer: Any, template: str | None, chat: Mapping[str, Any]) -> object:
    named = {} if template is None else {"chat_template": template}
    text = tokenizer.apply_chat_template(
        **chat, **named, tokenize=False, add_generation_prompt=True
    )
    return str(text)[:_MAX_RENDERED_CHARS]


def _planes() -> dict[str, str]:
    """Characters of all 17 planes of Unicode, spread over each."""
    found = {}
    for plane in range(17):
        points = range(plane << 16, (plane + 1) << 16, _STEPS.get(plane, _STEP_OF_EMPTY_PLANES))
        characters = (chr(point) for point in points if point not in _SURROGATES)
        found[f"characters of Unicode plane {plane}"] = "".join(characters)
    return found


def _refusal(folder: Path, error: BaseException) -> InvalidModelError | UnsupportedModelError:
    """The reason why a tokenizer does not open, and the remedy."""
    files = [name for name in taken_over(folder) if "/" not in name]
    reason = " ".join(str(error).replace(str(folder), "the model").split())
    if _OWN_CODE in reason or ("tokenizer.json" not in files and _names_code(folder)):
        return UnsupportedModelError(
            "The tokenizer of this model is Python code of its own, and dynquant never runs code "
            "from a model. Take a version of the model that has a tokenizer.json.",
            reason=Reason.OWN_CODE,
        )
    package = found[1] if (found := _NEEDS_PACKAGE.search(reason)) else ""
    if package == _FALLBACK and not any(_FALLBACK in name for name in files):
        reason = "none of them is a vocabulary that transformers reads"
    elif package:
        return UnsupportedModelError(
            f"Reading the tokenizer of this model ({_listed(files)}) takes the Python package "
            f"'{package}', which is not installed. Install it with 'pip install {package}', or "
            "take a version of the model that has a tokenizer.json."
        )
    for name in files:
        if name.endswith(".json") and not _is_json(folder / name):
            return InvalidModelError(
                f"The tokenizer of this model cannot be opened: '{name}' is not valid JSON. "
                "Download that file again, or ask the model's author."
            )
    if not files or reason.startswith(_NO_VOCABULARY):
        return _no_tokenizer(files)
    return InvalidModelError(
        f"The tokenizer of this model cannot be opened from {_listed(files)} "
        f"({reason[:_MAX_REASON_CHARS].rstrip('.')}). Compare these files with those of the "
        "original, or ask the model's author."
    )


def _no_tokenizer(files: Sequence[str]) -> InvalidModelError:
    there = f" among its files ({_listed(files)})" if files else ""
    return InvalidModelError(
        "The tokenizer of this model cannot be opened: transformers finds no vocabulary, such as "
        f"tokenizer.json or tokenizer.model{there}. Put the files of its tokenizer beside the "
        "weights, or ask the model's author for them."
    )


def _names_code(folder: Path) -> bool:
    """Whether the tokenizer's config names Python code in the model's folder."""
    try:
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return "AutoTokenizer" in config["auto_map"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def _is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return True


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(f"'{name[:50]}'" for name in names[:_MAX_NAMED]) + more
