"""Reasons for which the watcher skips a model: codes for programs, sentences for people."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Skip"]


class Skip(StrEnum):
    """Why a model is not queued; a code that stays the same between releases.

    Attributes:
        sentence: The reason, to be shown to people.
        may_pass: Whether the same model may be taken later although it does not change.
    """

    sentence: str
    may_pass: bool

    def __new__(cls, code: str, sentence: str = "", may_pass: bool = False) -> Skip:  # noqa: FBT001, FBT002
        """A member; its value is the code alone."""
        member = str.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        member.may_pass = may_pass
        return member

    # Fixed limits.
    PRIVATE = "private", "It is private, so its quants must not be published automatically."
    DISABLED = "disabled", "The Hub has disabled it."
    OPTED_OUT = "opted_out", "Its author has opted out, in the card or on the opt-out list."
    OWN_RESULT = "own_result", "It was made by dynquant."
    QUANT = "quant", "It is a quant already, or in the format of another runtime."
    ADAPTER = "adapter", "It is an adapter, not a whole model."
    NO_SAFETENSORS = (
        "no_safetensors",
        "It has no weights that mlx-lm reads: no 'model*.safetensors' at its top.",
    )
    INCOMPLETE = (
        "incomplete",
        "Some of its weights are missing; they may still be uploading.",
        True,
    )
    UNKNOWN_SIZE = "unknown_size", "The Hub does not say how many parameters it has."
    TOY = "toy", "It has fewer parameters than 'min_parameters', so it is empty, a test or a toy."
    NO_DERIVATIVES = "no_derivatives", "Its license forbids derivatives, and a quant is one."

    # Rules.
    NOT_COVERED = "not_covered", "No rule covers it."
    GATED = "gated", "It is gated, and the rule does not take gated models."
    TOO_SMALL = "too_small", "It has fewer parameters than the rule takes."
    TOO_LARGE = "too_large", "It has more parameters than the rule takes."
    LICENSE_REFUSED = "license_refused", "The rule does not take its license."
    LICENSE_UNKNOWN = (
        "license_unknown",
        "It has no known license, and the rule requires a known license.",
    )
    TOO_OLD = "too_old", "It was created longer ago than the rule takes."
    TOO_YOUNG = (
        "too_young",
        "It is younger than the rule takes; it is looked at again later.",
        True,
    )
    TOO_UNKNOWN = (
        "too_unknown",
        "It has fewer likes or downloads than the rule takes; it is looked at again.",
        True,
    )

    # Close looks and the queue.
    UNCHANGED = "unchanged", "It was looked at before, at the same commit."
    SAME_WEIGHTS = (
        "same_weights",
        "It has changed since it was queued, but its weights are the same.",
    )
    OLD_WEIGHTS = (
        "old_weights",
        "It has changed, but its weights were uploaded before the watch began.",
    )
    UNSUPPORTED = "unsupported", "It has an architecture that mlx-lm does not know."
    DOES_NOT_FIT = "does_not_fit", "It fits none of the memory sizes of the rule."
    ALREADY_PUBLISHED = (
        "already_published",
        "Quants of these weights and sizes are published already.",
    )
    GONE = "gone", "There is no such model, or it was renamed or closed after it was listed."
    REFUSED = "refused", "The queue refused it."

    # Looked at again automatically.
    SWEEP_LIMIT = (
        "sweep_limit",
        "The rule has reached its limit for one sweep; the model is next in line.",
        True,
    )
    DAY_LIMIT = (
        "day_limit",
        "The rule has reached its limit for 24 hours; the model is queued later.",
        True,
    )
    CALL_LIMIT = (
        "call_limit",
        "This sweep has reached its limit of requests; the model is next in line.",
        True,
    )
    NO_ANSWER = (
        "no_answer",
        "The Hub did not answer the request for it; it is looked at again later.",
        True,
    )
