"""The default texts, and the calibration texts that visitors may choose."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CALIBRATIONS", "DEFAULT_CALIBRATION", "DEFAULT_EVALUATION"]

DEFAULT_CALIBRATION = "allenai/tulu-3-sft-mixture:default:train:messages"
DEFAULT_EVALUATION = "Salesforce/wikitext:wikitext-2-raw-v1:test:text"
# Two sets, so that no model is evaluated on its calibration text. Calibration uses chats, as most
# users of models do; evaluation uses a plain text on which other published figures are measured.

CALIBRATIONS: Mapping[str, str] = {
    "Conversations (Tulu 3)": DEFAULT_CALIBRATION,
    "Articles (WikiText-2, training part)": "Salesforce/wikitext:wikitext-2-raw-v1:train:text",
}
"""Visitors choose from these only: an arbitrary name could be a file of the runner."""
