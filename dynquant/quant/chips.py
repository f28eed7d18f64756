"""Apple's chips by the bandwidth of their memory, which bounds how fast a model generates."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path

from dynquant.errors import InvalidOptionError
from dynquant.quant.speed import BandwidthModel

__all__ = ["bandwidth_model", "bandwidths_gb_per_sec", "chip_named"]

_FILE = Path(__file__).with_name("chips.json")


@dataclass(frozen=True, slots=True)
class _Chips:
    model: BandwidthModel
    bandwidths_gb_per_sec: Mapping[str, float]


def bandwidth_model() -> BandwidthModel:
    """The share of a bandwidth that MLX reaches on Apple's chips, and its time beside that."""
    return _read().model


def bandwidths_gb_per_sec() -> Mapping[str, float]:
    """Name of a chip, such as `M4 Pro` → bandwidth, in units of 10⁹ bytes per second."""
    return _read().bandwidths_gb_per_sec


def chip_named(text: str) -> str:
    """The name in `bandwidths_gb_per_sec` of a chip that a person wrote, such as `apple m4 pro`.

    Raises:
        InvalidOptionError: The chip is not known; the message suggests the nearest ones.
    """
    known = {_plain(name): name for name in bandwidths_gb_per_sec()}
    asked = _plain(text)
    if asked in known:
        return known[asked]
    near = [known[name] for name in get_close_matches(asked, known, n=3, cutoff=0.5)]
    listed = ", ".join(f"'{name}'" for name in near or known.values())
    likely = "The nearest known ones are" if near else "Known are"
    raise InvalidOptionError(f"No chip is called '{text[:40]}'. {likely} {listed}.")


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.casefold().replace("apple", " ")))


@cache
def _read() -> _Chips:
    raw = json.loads(_FILE.read_text(encoding="utf-8"))
    estimate = raw["estimate"]
    return _Chips(
        BandwidthModel(
            share=estimate["share_of_bandwidth"],
            secs_per_block=estimate["secs_per_block"],
            secs_per_expert_block=estimate["secs_per_expert_block"],
        ),
        {name: chip["bandwidth_gb_per_sec"] for name, chip in raw["chips"].items()},
    )
