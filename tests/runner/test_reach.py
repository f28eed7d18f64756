from __future__ import annotations

import sys

import pytest

from dynquant.runner.reach import reach, statement

pytestmark = pytest.mark.harden("sandboxed compute")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is Linux's")
def test_nothing_is_reached_from_inside(harden):
    assert reach() == []
    assert "no network" in statement([])
    harden("refused")


def test_what_the_system_does_not_take_away_is_found_and_said(monkeypatch):
    """As on a system without a sandbox: a process that looks confined is not confined again."""
    monkeypatch.setenv("DYNQUANT_CONFINED", "1")
    found = reach()
    assert found == ["connect", "write", "read", "open_to_others", "signal"]
    sentence = statement(found)
    assert "can reach the network, write outside of its folder, read the files" in sentence
    assert sentence.count(" and signal other processes: this system has no means") == 1
    assert "docs/security.md" in sentence
