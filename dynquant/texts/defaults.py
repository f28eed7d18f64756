"""The texts that are used where a request names none, and those that visitors may choose."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CALIBRATIONS", "DEFAULT_CALIBRATION", "DEFAULT_EVALUATION"]

DEFAULT_CALIBRATION = "allenai/tulu-3-sft-mixture:default:train:messages"
DEFAULT_EVALUATION = "Salesforce/wikitext:wikitext-2-raw-v1:test:text"
# Two sets, so that no figure rests on text that was calibrated on; chats to calibrate because
# that is what models are used for, and plain text that other published figures use as well.

CALIBRATIONS: Mapping[str, str] = {
    "Conversations (Tulu 3)": DEFAULT_CALIBRATION,
    "Articles (WikiText-2, training part)": "Salesforce/wikitext:wikitext-2-raw-v1:train:text",
}
"""What visitors may calibrate on. Not any text: to a runner a name may be a file of its own."""
