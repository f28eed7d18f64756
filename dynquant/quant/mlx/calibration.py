"""From text to token windows, and the check that figures do not rest on calibration text."""

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

from dynquant.errors import InvalidModelError, TextError
from dynquant.quant.mlx.templates import ChatTemplate
from dynquant.quant.plan import TextFacts
from dynquant.texts.documents import Document, Text
from dynquant.texts.overlap import Sketch, Sketcher, is_too_much, share_of

__all__ = [
    "CHUNK_LOGITS",
    "Windows",
    "batch_tokens",
    "cut_windows",
    "vocabulary_size",
    "window_length",
]

logger = logging.getLogger(__name__)

MAX_WINDOW_TOKENS = 512
# Where configs say it; behind it learned positions are memory of something else.
_CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx")
# Enough to keep a matrix unit busy; on a CPU two batches go at once.
_BATCH_TOKENS = {mx.cpu: 1024, mx.gpu: 2048}
_BATCH_LOGITS = {mx.cpu: 1 << 26, mx.gpu: 1 << 27}  # half a GB in float32 at once
CHUNK_LOGITS = 1 << 21
"""Worked on at a time: 8 MiB in float32 stay in a processor's cache."""
_SPREAD = 32  # windows are spread over up to this many times the tokens asked for
_CHUNK_CHARACTERS = 1 << 20
_MAX_ID = 2**31 - 1
_MIN_CONTEXT_TOKENS = 32
_SAMPLE, _MAX_FIRST = "a", 4  # of what a tokenizer may put before a text
_SCAFFOLDING = frozenset({"system", "developer"})
"""Roles whose messages many chats have in common: sharing them makes no two texts the same."""
_NUM_STORED_HASHES = 1024  # of a sketch in `plan.json`: 11 kB


@dataclass(frozen=True)
class Windows:
    """Token windows of one text.

    Attributes:
        tokens: (windows, seq), int32.
        sketch: Stretches of the text that was read, of chats without the words of their template.
        facts: What the card says about the text.
    """

    tokens: np.ndarray
    sketch: Sketch
    facts: TextFacts

    def batches(self, start: int = 0, stop: int | None = None, *, vocab: int = 1) -> list[mx.array]:
        """Windows from `start` to `stop` in batches, each (batch, seq), int32.

        Args:
            start: The first.
            stop: The one behind the last.
            vocab: Logits of a token; batches are smaller where there are very many.
        """
        chosen = self.tokens[start:stop]
        size = max(1, batch_tokens(vocab) // chosen.shape[1])
        return [mx.array(chosen[i : i + size]) for i in range(0, len(chosen), size)]

    def check_disjoint(self, calibration: Self) -> None:
        """Refuse to evaluate on what was calibrated on.

        Raises:
            TextError: The texts are the same, or overlap as `texts.overlap.is_too_much` has it.
        """
        is_same = self.facts.sha256 == calibration.facts.sha256
        if is_same or is_too_much(self.sketch, known=calibration.sketch):
            share = 1.0 if is_same else share_of(self.sketch, known=calibration.sketch)
            raise TextError(
                f"The evaluation text '{self.facts.name}' shares {share:.0%} of its text with the "
                "calibration text, so its figures would flatter. Pass a text to --eval that the "
                "calibration did not see."
            )

    def to_json(self) -> dict[str, Any]:
        """The windows as JSON types, for another process of the same job."""
        return {
            "tokens": base64.b64encode(self.tokens.astype("<i4").tobytes()).decode(),
            "sketch": self.sketch.to_text(),
            "facts": asdict(self.facts),
        }

    @classmethod
    def from_json(cls, raw: Any, *, window_tokens: int, num_tokens: int | None) -> Self:
        """What `to_json` made, perhaps in a process that a stranger's file has taken over.

        Args:
            raw: JSON types.
            window_tokens: Length of a window of this model.
            num_tokens: How many the model's embedding knows; None if nobody can tell.

        Raises:
            InvalidModelError: It is none, or has tokens that the model does not know.
        """
        try:
            tokens = np.frombuffer(base64.b64decode(raw["tokens"], validate=True), dtype="<i4")
            tokens = tokens.reshape(-1, window_tokens)
            are_known = tokens.min() >= 0 and tokens.max() < min(num_tokens or _MAX_ID, _MAX_ID)
            facts = TypeAdapter(TextFacts).validate_python(raw["facts"])
            sketch = Sketch.from_text(raw["sketch"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidModelError(
                "The token windows of this job cannot be read. Retry the job."
            ) from error
        if not are_known:  # MLX would read memory that is not the model's
            raise InvalidModelError("The token windows of this job are of another model.")
        return cls(tokens=tokens.astype(np.int32), sketch=sketch, facts=facts)


def window_length(config: Mapping[str, Any]) -> int:
    """Tokens of a window: 512, or the model's context where that is shorter.

    Raises:
        InvalidModelError: The config's context makes no sense.
    """
    text_config = config.get("text_config")
    configs = [config, *([text_config] if isinstance(text_config, dict) else [])]
    contexts = [MAX_WINDOW_TOKENS]
    for each in configs:
        for name in _CONTEXTS:
            context = each.get(name) or MAX_WINDOW_TOKENS
            if not isinstance(context, int | float) or not context >= _MIN_CONTEXT_TOKENS:
                raise InvalidModelError(
                    f"{name} in config.json must be a number of at least {_MIN_CONTEXT_TOKENS}. "
                    "Ask the model's author."
                )
            contexts.append(int(min(MAX_WINDOW_TOKENS, context)))
    return min(contexts)


def vocabulary_size(config: Mapping[str, Any]) -> int:
    """Logits of a token; 1 where the config does not say."""
    text_config = config.get("text_config")
    nested = text_config.get("vocab_size") if isinstance(text_config, dict) else None
    size = config.get("vocab_size") or nested
    return size if isinstance(size, int) and size > 0 else 1


def batch_tokens(vocab: int) -> int:
    """Tokens that go through a model at once; fewer where the logits of each are very many."""
    device = mx.default_device().type
    return max(1, min(_BATCH_TOKENS[device], _BATCH_LOGITS[device] // vocab))


def cut_windows(
    text: Text,
    tokenizer: Any,
    *,
    window_tokens: int,
    num_windows: int,
    min_windows: int,
    num_tokens: int | None = None,
) -> Windows:
    """Windows spread evenly over the beginning of `text`; chats go through the chat template.

    Each begins with what the tokenizer puts before every text, such as `<bos>`: some models are
    lost without it.

    Args:
        text: Documents; plain ones are joined by an empty line.
        tokenizer: The model's own.
        window_tokens: Length of a window.
        num_windows: How many to cut; fewer where the text is short.
        min_windows: With fewer than these the text is refused.
        num_tokens: How many the model's embedding knows; None if nobody can tell.

    Raises:
        InvalidModelError: The tokenizer fails, or makes tokens that the model does not know.
        TextError: The text is empty or too short; carries `num_tokens_needed`.
    """
    digest, first = hashlib.sha256(), _first_tokens(tokenizer, num_tokens=num_tokens)
    parts: list[np.ndarray] = []
    length = window_tokens - len(first)  # of a window's own text
    count, wanted = 0, _SPREAD * num_windows * length
    template, sketcher = ChatTemplate(tokenizer), Sketcher()
    num_plain = 0
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
    if count < min_windows * length:
        raise TextError(
            f"The text '{text.name}' has {count:,} tokens, and at least "
            f"{min_windows * length:,} are needed. Pass a longer text.",
            num_tokens_needed=min_windows * length,
        )
    if template.refusal:
        logger.warning(
            "The chat template wrote %d of %d chats of '%s'; the others are read as plain text. "
            "It refused the first of them: %s",
            template.num_formatted,
            template.num_chats,
            text.name,
            template.refusal,
        )
    stream, sketch = np.concatenate(parts), sketcher.sketch()
    if np.array_equal(stream[: len(first)], first):  # a chat template has put it there
        stream = stream[len(first) :]
    whole = stream[: len(stream) // length * length].reshape(-1, length)
    kept = min(num_windows, len(whole))
    chosen = whole[np.linspace(0, len(whole) - 1, kept).astype(int)]
    chosen = np.concatenate([np.tile(first, (kept, 1)), chosen], axis=1)
    return Windows(
        tokens=chosen,
        sketch=sketch,
        facts=TextFacts(
            name=text.name,
            sha256=digest.hexdigest(),
            num_tokens=int(chosen.size),
            window_tokens=window_tokens,
            chat_formatted=template.num_formatted > 0 and not num_plain,
            num_chats=template.num_chats,
            num_chats_formatted=template.num_formatted,
            chat_refusal=template.public_refusal,
            template_date=template.date,
            source_sha256=text.source_sha256,
            sketch=sketch.shortened(_NUM_STORED_HASHES).to_text(),
        ),
    )


def _pieces(documents: Iterator[Document]) -> Iterator[Document]:
    """Documents, long texts in chunks so that no more is tokenized than is used."""
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
    """What the tokenizer puts before every text, (n,), int32; mostly one token or none."""
    plain = _encoded(_SAMPLE, tokenizer, num_tokens=num_tokens).tolist()
    whole = _encoded(_SAMPLE, tokenizer, num_tokens=num_tokens, add_special_tokens=True)
    starts = range(min(_MAX_FIRST, len(whole)))
    found = (n for n in starts if plain and whole[n : n + len(plain)].tolist() == plain)
    return whole[: next(found, 0)]


def _encoded(
    text: str, tokenizer: Any, *, num_tokens: int | None, add_special_tokens: bool = False
) -> np.ndarray:
    """Token ids, int32; an id without a row would make MLX read memory that is not the model's."""
    try:
        ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
        ids = np.asarray(ids, dtype=np.int64)
    except BaseException as error:  # what Rust raises when it panics is no Exception
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
