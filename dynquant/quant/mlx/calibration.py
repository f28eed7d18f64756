"""From text to token windows, and the check that evaluation text is not calibration text."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Self

import mlx.core as mx
import numpy as np
from pydantic import TypeAdapter

from dynquant.errors import ImagesError, InvalidModelError, TextError
from dynquant.quant.mlx.templates import ChatTemplate
from dynquant.quant.plan import TextFacts
from dynquant.quant.recipe import MAX_CONTEXT_TOKENS
from dynquant.texts.documents import Document, Text
from dynquant.texts.images import ImagePrompts
from dynquant.texts.overlap import Sketch, Sketcher, is_too_much, share_of

__all__ = [
    "CHUNK_LOGITS",
    "Windows",
    "batch_tokens",
    "context_limit",
    "cut_windows",
    "in_batches",
    "vocabulary_size",
    "window_length",
]

logger = logging.getLogger(__name__)

MAX_WINDOW_TOKENS = 512
# Names of the context in configs. With learned positions MLX would read past their table.
_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx")
# Enough to keep a matrix unit busy; on a CPU two batches go at once.
_BATCH_TOKENS = {mx.cpu: 1024, mx.gpu: 2048}
_BATCH_LOGITS = {mx.cpu: 1 << 26, mx.gpu: 1 << 27}  # half a GB in float32 at once
CHUNK_LOGITS = 1 << 21
"""Logits to work on at a time: 8 MiB in float32 stay in a processor's cache."""
_SPREAD = 32  # windows are spread over up to this many times the tokens asked for
_CHUNK_CHARACTERS = 1 << 20
_MAX_ID = 2**31 - 1
_MIN_CONTEXT_TOKENS = 32
_SAMPLE, _MAX_FIRST = "a", 4  # tokens that a tokenizer may put before a text
_SCAFFOLDING = frozenset({"system", "developer"})
"""Roles whose messages many chats share; they do not count as overlap of two texts."""
_NUM_STORED_HASHES = 1024  # of a sketch in `plan.json`: 11 kB


@dataclass(frozen=True)
class Windows:
    """Token windows of one text.

    Attributes:
        tokens: (windows, seq), int32.
        more: Other windows of the same text, to fit weights on, (windows, seq), int32.
        sketch: Sketch of the text that was read; of chats without the words of their template.
        facts: Facts about the text for the card.
        images: Questions about images beside the text.
    """

    tokens: np.ndarray
    more: np.ndarray
    sketch: Sketch
    facts: TextFacts
    images: ImagePrompts | None = None

    def batches(self, start: int = 0, stop: int | None = None, *, vocab: int = 1) -> list[mx.array]:
        """Windows from `start` to `stop` in batches, each (batch, seq), int32.

        Args:
            start: Index of the first window.
            stop: Index behind the last window.
            vocab: Size of the vocabulary; batches are smaller where it is very large.
        """
        chosen = self.tokens[start:stop]
        return in_batches(chosen, max(1, batch_tokens(vocab) // chosen.shape[1]))

    def check_disjoint(self, calibration: Self) -> None:
        """Refuse evaluation windows that share text or an image with the calibration windows.

        Raises:
            TextError: The texts are the same, or overlap too much (`texts.overlap.is_too_much`).
            ImagesError: Both have one image.
        """
        if self.images is not None and calibration.images is not None:
            shared = self.images.shared_with(calibration.images)
            if shared is not None:
                raise ImagesError(
                    f"The image '{shared}' is among those to evaluate on and those to calibrate "
                    "on, so its figures would flatter. Pass other images to --eval-images."
                )
        is_same = self.facts.sha256 == calibration.facts.sha256
        if is_same or is_too_much(self.sketch, known=calibration.sketch):
            share = 1.0 if is_same else share_of(self.sketch, known=calibration.sketch)
            raise TextError(
                f"The evaluation text '{self.facts.name}' shares {share:.0%} of its text with the "
                "calibration text, so its figures would flatter. Pass a text to --eval that the "
                "calibration did not see."
            )

    def to_json(self) -> dict[str, Any]:
        """The windows as JSON types, for another process of the same job; without images."""
        return {
            "tokens": _encoded_tokens(self.tokens),
            "more": _encoded_tokens(self.more),
            "sketch": self.sketch.to_text(),
            "facts": asdict(self.facts),
        }

    @classmethod
    def from_json(cls, raw: Any, *, window_tokens: int, num_tokens: int | None) -> Self:
        """The windows from `to_json`, perhaps of a process that a malicious file has taken over.

        Args:
            raw: JSON types.
            window_tokens: Length of a window of this model.
            num_tokens: Rows of the model's embedding; None if unknown.

        Raises:
            InvalidModelError: `raw` has another form, or tokens without a row.
        """
        try:
            tokens, more = (
                np.frombuffer(base64.b64decode(raw[name], validate=True), dtype="<i4")
                .reshape(-1, window_tokens)
                .astype(np.int32)
                for name in ("tokens", "more")
            )
            known = min(num_tokens or _MAX_ID, _MAX_ID)
            are_known = tokens.min() >= 0 and max(tokens.max(), more.max(initial=0)) < known
            are_known = are_known and more.min(initial=0) >= 0
            facts = TypeAdapter(TextFacts).validate_python(raw["facts"])
            sketch = Sketch.from_text(raw["sketch"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidModelError(
                "The token windows of this job cannot be read. Retry the job."
            ) from error
        if not are_known:  # MLX would read memory outside the embedding
            raise InvalidModelError("The token windows of this job are of another model.")
        return cls(tokens=tokens, more=more, sketch=sketch, facts=facts)


def in_batches(tokens: np.ndarray, size: int) -> list[mx.array]:
    """Windows (windows, seq) in batches of up to `size`, each (batch, seq), int32."""
    return [mx.array(tokens[i : i + size]) for i in range(0, len(tokens), size)]


def _encoded_tokens(tokens: np.ndarray) -> str:
    return base64.b64encode(tokens.astype("<i4").tobytes()).decode()


def window_length(config: Mapping[str, Any]) -> int:
    """Tokens of a window: 512, or the model's context where that is shorter.

    Raises:
        InvalidModelError: The config's context is no number, or too short.
    """
    limit = context_limit(config)
    return MAX_WINDOW_TOKENS if limit is None else min(MAX_WINDOW_TOKENS, limit)


def context_limit(config: Mapping[str, Any]) -> int | None:
    """Tokens of the longest context that a config names; None if it names none.

    Raises:
        InvalidModelError: The config's context is no number, or too short.
    """
    text_config = config.get("text_config")
    configs = [config, *([text_config] if isinstance(text_config, dict) else [])]
    contexts = list[int]()
    for each in configs:
        for name in _CONTEXTS:
            context = each.get(name)
            if not context:
                continue
            if not isinstance(context, int | float) or not context >= _MIN_CONTEXT_TOKENS:
                raise InvalidModelError(
                    f"{name} in config.json must be a number of at least {_MIN_CONTEXT_TOKENS}. "
                    "Ask the model's author."
                )
            contexts.append(int(min(MAX_CONTEXT_TOKENS, context)))
    return min(contexts, default=None)


def vocabulary_size(config: Mapping[str, Any]) -> int:
    """Size of the vocabulary; 1 where the config does not say."""
    text_config = config.get("text_config")
    nested = text_config.get("vocab_size") if isinstance(text_config, dict) else None
    size = config.get("vocab_size") or nested
    return size if isinstance(size, int) and size > 0 else 1


def batch_tokens(vocab: int) -> int:
    """Tokens that go through a model at once; fewer where the vocabulary is very large."""
    device = mx.default_device().type
    return max(1, min(_BATCH_TOKENS[device], _BATCH_LOGITS[device] // vocab))


def cut_windows(
    text: Text,
    tokenizer: Any,
    *,
    window_tokens: int,
    num_windows: int,
    min_windows: int,
    num_more: int = 0,
    num_tokens: int | None = None,
) -> Windows:
    """Windows spread evenly over the beginning of `text`; chats go through the chat template.

    Each window begins with the tokens that the tokenizer puts before every text, such as `<bos>`:
    models are trained with them, and inference adds them.

    Args:
        text: Documents; plain ones are joined by an empty line.
        tokenizer: The model's own.
        window_tokens: Length of a window.
        num_windows: How many to cut; fewer where the text is short.
        min_windows: A text with fewer is refused.
        num_more: How many other windows to cut from the same beginning of the text, to fit weights
            on; fewer where the text is short.
        num_tokens: Rows of the model's embedding; None if unknown.

    Raises:
        InvalidModelError: The tokenizer fails, or gives tokens without a row.
        TextError: The text is empty or too short; carries `num_tokens_needed`.
    """
    first = _first_tokens(tokenizer, num_tokens=num_tokens)
    length = window_tokens - len(first)  # of the text in a window
    read = _read(text, tokenizer, _SPREAD * num_windows * length, num_tokens=num_tokens)
    if len(read.stream) < min_windows * length:
        raise TextError(
            f"The text '{text.name}' has {len(read.stream):,} tokens, and at least "
            f"{min_windows * length:,} are needed. Pass a longer text.",
            num_tokens_needed=min_windows * length,
        )
    if read.template.refusal:
        logger.warning(
            "The chat template wrote %d of %d chats of '%s'; the others are read as plain text. "
            "It refused the first of them: %s",
            read.template.num_formatted,
            read.template.num_chats,
            text.name,
            read.template.refusal,
        )
    whole = _cut(read.stream, first, length)
    chosen, others = _spread(len(whole), num_windows, num_more)
    facts = _facts(text, read, whole[chosen])
    return Windows(tokens=whole[chosen], more=whole[others], sketch=read.sketch, facts=facts)


@dataclass(frozen=True)
class _Read:
    """The beginning of a text.

    Attributes:
        stream: Its tokens, (n,), int32.
        sha256: Of the text as it was tokenized, chats with their template.
        sketch: As in `Windows`.
        template: The chat template, with its counts.
        num_plain: Documents, or parts of them, that the template did not write.
    """

    stream: np.ndarray
    sha256: str
    sketch: Sketch
    template: ChatTemplate
    num_plain: int


def _read(text: Text, tokenizer: Any, wanted: int, *, num_tokens: int | None) -> _Read:
    """Tokenize `text` until there are `wanted` tokens; arguments as for `cut_windows`."""
    template, sketcher, digest = ChatTemplate(tokenizer), Sketcher(), hashlib.sha256()
    parts, count, num_plain = list[np.ndarray](), 0, 0
    for piece in _pieces(text.documents()):
        rendered = None if isinstance(piece, str) else template.render(piece)
        num_plain += rendered is None
        if rendered is None:
            rendered = _plain(piece, first=not parts)
        for own in [piece] if isinstance(piece, str) else piece.contents(without=_SCAFFOLDING):
            sketcher.add(own)
        digest.update(rendered.encode())
        parts.append(_encoded(rendered, tokenizer, num_tokens=num_tokens))
        count += len(parts[-1])
        if count >= wanted:
            break
    stream = np.concatenate([np.zeros(0, np.int32), *parts])
    return _Read(stream, digest.hexdigest(), sketcher.sketch(), template, num_plain)


def _cut(stream: np.ndarray, first: np.ndarray, length: int) -> np.ndarray:
    """All windows of `length` tokens of `stream`, each behind the tokens of `first`."""
    if np.array_equal(stream[: len(first)], first):  # a chat template has put it there
        stream = stream[len(first) :]
    whole = stream[: len(stream) // length * length].reshape(-1, length)
    return np.concatenate([np.tile(first, (len(whole), 1)), whole], axis=1)


def _spread(num_there: int, num_windows: int, num_more: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of up to `num_windows` windows, evenly spaced, and of up to `num_more` others."""
    chosen = np.linspace(0, num_there - 1, min(num_windows, num_there)).astype(int)
    others = np.setdiff1d(np.arange(num_there), chosen)
    if num_more < len(others):
        others = others[np.linspace(0, len(others) - 1, num_more).astype(int)]
    return chosen, others


def _facts(text: Text, read: _Read, tokens: np.ndarray) -> TextFacts:
    """For the card and `plan.json`."""
    template = read.template
    return TextFacts(
        name=text.name,
        sha256=read.sha256,
        num_tokens=int(tokens.size),
        window_tokens=tokens.shape[1],
        chat_formatted=template.num_formatted > 0 and not read.num_plain,
        num_chats=template.num_chats,
        num_chats_formatted=template.num_formatted,
        chat_refusal=template.public_refusal,
        template_date=template.date,
        source_sha256=text.source_sha256,
        sketch=read.sketch.shortened(_NUM_STORED_HASHES).to_text(),
    )


def _pieces(documents: Iterator[Document]) -> Iterator[Document]:
    """Documents; long texts in chunks, so that tokenizing can stop early."""
    for document in documents:
        if not isinstance(document, str):
            yield document
            continue
        for start in range(0, len(document), _CHUNK_CHARACTERS):
            yield document[start : start + _CHUNK_CHARACTERS]


def _plain(piece: Document, *, first: bool) -> str:
    if isinstance(piece, str):
        return piece if first else f"\n\n{piece}"
    return "\n\n".join(chain([""], piece.contents()))


def _first_tokens(tokenizer: Any, *, num_tokens: int | None) -> np.ndarray:
    """The tokens that the tokenizer puts before every text, (n,), int32; mostly 0 or 1."""
    plain = _encoded(_SAMPLE, tokenizer, num_tokens=num_tokens).tolist()
    whole = _encoded(_SAMPLE, tokenizer, num_tokens=num_tokens, add_special_tokens=True)
    starts = range(min(_MAX_FIRST, len(whole)))
    found = (n for n in starts if plain and whole[n : n + len(plain)].tolist() == plain)
    return whole[: next(found, 0)]


def _encoded(
    text: str, tokenizer: Any, *, num_tokens: int | None, add_special_tokens: bool = False
) -> np.ndarray:
    """Token ids, int32; for an id without a row MLX would read memory outside the embedding."""
    try:
        ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        ids = np.asarray(ids, dtype=np.int64)
    except BaseException as error:  # a panic in Rust is no Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise InvalidModelError(
            "The tokenizer of this model fails on ordinary text. Ask the model's author."
        ) from error
    if len(ids) and (ids.min() < 0 or ids.max() >= min(num_tokens or _MAX_ID, _MAX_ID)):
        raise InvalidModelError(
            f"The tokenizer of this model makes token {ids.max():,}, and its embedding has "
            f"{num_tokens or _MAX_ID:,}. Take tokenizer and weights from one version of the model."
        )
    return ids.astype(np.int32)
