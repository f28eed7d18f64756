from __future__ import annotations

from tests.hardening import tally


def test_a_row_counts_its_cases_by_how_they_ended():
    rows = tally(
        [
            (True, [("harden", "web"), ("harden", "web|refused|1")]),
            (True, [("harden", "web"), ("harden", "web|refused|2"), ("harden", "web|handled|1")]),
            (True, [("other", "x"), ("harden", "models")]),
            (True, [("other", "web|refused|9")]),
        ]
    )
    assert rows == {"web": {"refused": 3, "handled": 1}, "models": {"handled": 1}}


def test_a_test_that_fails_has_lost_a_case_or_as_many_as_it_says():
    assert tally([(False, [("harden", "web")])]) == {"web": {"lost": 1}}
    said = [("harden", "faults"), ("harden", "faults|published|197"), ("harden", "faults|lost|3")]
    assert tally([(False, said)]) == {"faults": {"published": 197, "lost": 3}}
