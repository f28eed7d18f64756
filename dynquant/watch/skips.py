"""Why the watcher skips a model: codes for programs, sentences for people."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["EXPLANATIONS", "Skip"]


class Skip(StrEnum):
    """Why a model is not queued; a code that stays the same between releases."""

    # Manners.
    PRIVATE = "private"
    DISABLED = "disabled"
    OPTED_OUT = "opted_out"
    OWN_RESULT = "own_result"
    QUANT = "quant"
    ADAPTER = "adapter"
    NO_SAFETENSORS = "no_safetensors"
    INCOMPLETE = "incomplete"
    UNKNOWN_SIZE = "unknown_size"
    TOY = "toy"
    NO_DERIVATIVES = "no_derivatives"
    # Rules.
    NOT_COVERED = "not_covered"
    GATED = "gated"
    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"
    LICENSE_REFUSED = "license_refused"
    LICENSE_UNKNOWN = "license_unknown"
    TOO_OLD = "too_old"
    TOO_YOUNG = "too_young"
    TOO_UNKNOWN = "too_unknown"
    # What the watcher finds out.
    UNCHANGED = "unchanged"
    SAME_WEIGHTS = "same_weights"
    OLD_WEIGHTS = "old_weights"
    UNSUPPORTED = "unsupported"
    DOES_NOT_FIT = "does_not_fit"
    ALREADY_PUBLISHED = "already_published"
    GONE = "gone"
    REFUSED = "refused"
    # It comes up again by itself.
    SWEEP_LIMIT = "sweep_limit"
    DAY_LIMIT = "day_limit"
    CALL_LIMIT = "call_limit"
    NO_ANSWER = "no_answer"

    @property
    def passes_by_itself(self) -> bool:
        """Whether the same model may be taken later although nobody changes it."""
        return self in _PASSING


_PASSING = frozenset(
    {
        Skip.INCOMPLETE,
        Skip.TOO_YOUNG,
        Skip.TOO_UNKNOWN,
        Skip.SWEEP_LIMIT,
        Skip.DAY_LIMIT,
        Skip.CALL_LIMIT,
        Skip.NO_ANSWER,
    }
)

EXPLANATIONS: dict[Skip, str] = {
    Skip.PRIVATE: "It is private, so what is made of it must not be published by itself.",
    Skip.DISABLED: "The Hub has disabled it.",
    Skip.OPTED_OUT: "Its author does not want it converted: the card or the opt-out list says so.",
    Skip.OWN_RESULT: "It was made by dynquant.",
    Skip.QUANT: "It is a quant already, or in the format of another runtime.",
    Skip.ADAPTER: "It is an adapter, not a whole model.",
    Skip.NO_SAFETENSORS: "It has no weights that mlx-lm reads: no 'model*.safetensors' at its top.",
    Skip.INCOMPLETE: "Some of its weights are missing: they may still be on their way up.",
    Skip.UNKNOWN_SIZE: "The Hub does not say how many parameters it has.",
    Skip.TOY: "It has fewer parameters than 'min_parameters', so it is empty, a test or a toy.",
    Skip.NO_DERIVATIVES: "Its license forbids derivatives, and a quant is one.",
    Skip.NOT_COVERED: "No rule speaks of it.",
    Skip.GATED: "It is gated, and the rule does not take gated models.",
    Skip.TOO_SMALL: "It has fewer parameters than the rule takes.",
    Skip.TOO_LARGE: "It has more parameters than the rule takes.",
    Skip.LICENSE_REFUSED: "The rule does not take its license.",
    Skip.LICENSE_UNKNOWN: "It names no license that is known, and the rule needs one.",
    Skip.TOO_OLD: "It was created longer ago than the rule takes.",
    Skip.TOO_YOUNG: "It is younger than the rule takes; it is looked at again later.",
    Skip.TOO_UNKNOWN: "It has fewer likes or downloads than the rule takes; it is looked at again.",
    Skip.UNCHANGED: "It was looked at before, at the same commit.",
    Skip.SAME_WEIGHTS: "It has changed since it was queued, and its weights have not.",
    Skip.OLD_WEIGHTS: "It has changed, and its weights were uploaded before the watch began.",
    Skip.UNSUPPORTED: "It has an architecture that mlx-lm does not know.",
    Skip.DOES_NOT_FIT: "It fits none of the memory sizes of the rule.",
    Skip.ALREADY_PUBLISHED: "It is on the Hub already, made by dynquant at these bits per weight.",
    Skip.GONE: "There is no such model, or it was renamed or closed after the Hub had listed it.",
    Skip.REFUSED: "The queue refused it.",
    Skip.SWEEP_LIMIT: "The rule has queued enough in this sweep; it is next in line.",
    Skip.DAY_LIMIT: "The rule has queued enough for 24 hours; its turn comes later.",
    Skip.CALL_LIMIT: "This sweep has asked the Hub often enough; it is next in line.",
    Skip.NO_ANSWER: "The Hub did not answer about it; it is looked at again later.",
}
"""A sentence for each reason, to be shown to people."""
