"""The table of `make harden`: what was tried on dynquant, and how each case ended.

A test belongs to a row by its marker and says by the fixture `harden` how its cases ended:

    @pytest.mark.harden("web")
    def test_a_forged_signature_is_refused(harden):
        ...
        harden("refused")

One that passes without a word counts as one case handled; one that fails is a case lost. A test
of many cases says `harden("published", 197)` and, before it fails, `harden("lost", 3)`.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import pytest

__all__ = ["OUTCOMES", "long_form", "tally", "write_table"]

OUTCOMES = ("refused", "handled", "published", "lost")
"""A sentence said why not; it did no harm; a job ended well all the same; none of these."""

ROW = "harden"
"""Name of the properties of a test report that hold `row` or `row|outcome|count`."""

long_form = pytest.mark.skipif(
    "DYNQUANT_HARDEN" not in os.environ, reason="set DYNQUANT_HARDEN=1, or make harden"
)


def tally(
    reports: Iterable[tuple[bool, Iterable[tuple[str, object]]]],
) -> dict[str, Counter[str]]:
    """Row → outcome → how many cases.

    Args:
        reports: Of each test whether it passed, and its properties.
    """
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for passed, properties in reports:
        said = [str(value).split("|") for name, value in properties if name == ROW]
        if not said:
            continue
        ends = [(row, outcome, int(count)) for row, outcome, count in filter(_is_end, said)]
        if not passed and all(outcome != "lost" for _, outcome, _ in ends):
            ends.append((said[0][0], "lost", 1))
        for row, outcome, count in ends or [(said[0][0], "handled", 1)]:
            rows[row][outcome] += count
    return dict(rows)


def write_table(
    rows: Mapping[str, Mapping[str, int]], terminalreporter: pytest.TerminalReporter
) -> None:
    """Class x cases x outcomes, as the session's last words."""
    width = max(map(len, (*rows, "class")))
    terminalreporter.section("hardening")
    say = terminalreporter.write_line
    say(f"{'class':{width}}  {'cases':>7}" + "".join(f"  {each:>9}" for each in OUTCOMES))
    for row, counts in sorted(rows.items()):
        cells = "".join(f"  {counts.get(each, 0):9}" for each in OUTCOMES)
        say(f"{row:{width}}  {sum(counts.values()):7}{cells}")


def _is_end(words: list[str]) -> bool:
    return len(words) > 1
