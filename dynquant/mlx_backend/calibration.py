"""From text to token windows, and the check that figures do not rest on calibration text."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import mlx.core as mx
import numpy as np

from dynquant.core.plan import TextFacts
from dynquant.errors import InvalidModelError, TextError
from dynquant.ports import Text

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
_SHINGLE_TOKENS = 32
_SAMPLE, _MAX_FIRST = "a", 4  # of what a tokenizer may put before a text
_MAX_OVERLAP = 0.05


@dataclass(frozen=True)
class Windows:
    """Token windows of one text.

    Attributes:
        tokens: (windows, seq), int32.
        shingles: Hashes of every run of 32 tokens in the text that was read, uint64.
        facts: What the card says about the text.
        num_first: Tokens at the start of each that the tokenizer puts before every text.
    """

    tokens: np.ndarray
    shingles: np.ndarray
    facts: TextFacts
    num_first: int = 0

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
            TextError: The texts are the same, or more than 5 % of these windows begin
                with 32 tokens that the calibration text has too.
        """
        starts = _shingles(self.tokens[:, self.num_first : self.num_first + _SHINGLE_TOKENS])
        share = float(np.isin(starts, calibration.shingles).mean()) if len(starts) else 0.0
        if self.facts.sha256 == calibration.facts.sha256:
            share = 1.0
        if share > _MAX_OVERLAP:
            raise TextError(
                f"The evaluation text '{self.facts.name}' shares {share:.0%} of its windows with "
                "the calibration text, so its figures would flatter. Pass a text to --eval that "
                "the calibration did not see."
            )


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
            if not isinstance(context, int | float) or not context >= _SHINGLE_TOKENS:
                raise InvalidModelError(
                    f"{name} in config.json must be a number of at least {_SHINGLE_TOKENS}. "
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
    count, wanted, chat = 0, _SPREAD * num_windows * length, False
    for piece in _pieces(text.documents()):
        rendered = None if isinstance(piece, str) else _rendered(piece, tokenizer)
        chat = chat or rendered is not None
        if rendered is None:
            rendered = _plain(piece, first=not parts)
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
    stream = np.concatenate(parts)
    if np.array_equal(stream[: len(first)], first):  # a chat template has put it there
        stream = stream[len(first) :]
    whole = stream[: len(stream) // length * length].reshape(-1, length)
    kept = min(num_windows, len(whole))
    chosen = whole[np.linspace(0, len(whole) - 1, kept).astype(int)]
    chosen = np.concatenate([np.tile(first, (kept, 1)), chosen], axis=1)
    return Windows(
        tokens=chosen,
        shingles=_shingles(stream),
        facts=TextFacts(
            name=text.name,
            sha256=digest.hexdigest(),
            num_tokens=int(chosen.size),
            window_tokens=window_tokens,
            chat_formatted=chat,
        ),
        num_first=len(first),
    )


def _pieces(
    documents: Iterator[str | Sequence[Mapping[str, str]]],
) -> Iterator[str | Sequence[Mapping[str, str]]]:
    """Documents, long texts in chunks so that no more is tokenized than is used."""
    for document in documents:
        if not isinstance(document, str):
            yield document
            continue
        for start in range(0, len(document), _CHUNK_CHARACTERS):
            yield document[start : start + _CHUNK_CHARACTERS]


def _rendered(chat: Sequence[Mapping[str, str]], tokenizer: Any) -> str | None:
    """A chat as its template has it; None where there is none, or it does not take this chat.

    Templates are programs of strangers. transformers runs them in Jinja's sandbox; what they
    raise there is theirs, and so is how much they write.
    """
    if not getattr(tokenizer, "has_chat_template", False):
        return None
    try:
        return str(tokenizer.apply_chat_template(list(chat), tokenize=False))[:_CHUNK_CHARACTERS]
    except Exception as error:  # noqa: BLE001
        logger.debug("The chat template does not take a chat: %s", error)
        return None


def _plain(piece: str | Sequence[Mapping[str, str]], *, first: bool) -> str:
    if isinstance(piece, str):
        return piece if first else f"\n\n{piece}"
    return "\n\n".join(chain([""], (message["content"] for message in piece)))


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


def _shingles(tokens: np.ndarray) -> np.ndarray:
    """Hash of every run of 32 tokens along the last axis, flattened, uint64."""
    if tokens.shape[-1] < _SHINGLE_TOKENS:
        return np.zeros(0, dtype=np.uint64)
    rng = np.random.default_rng(0)
    factors = rng.integers(1, 2**63, _SHINGLE_TOKENS, dtype=np.uint64) | np.uint64(1)
    total = np.zeros((*tokens.shape[:-1], tokens.shape[-1] - _SHINGLE_TOKENS + 1), dtype=np.uint64)
    for offset, factor in enumerate(factors):
        end = tokens.shape[-1] - _SHINGLE_TOKENS + 1 + offset
        total += tokens[..., offset:end].astype(np.uint64) * factor
    return total.reshape(-1)
