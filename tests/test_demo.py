"""The parts of `make demo`; it runs as a whole by hand and in CI."""

from __future__ import annotations

import runpy
from pathlib import Path

from local_hub import LocalHub

DEMO = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "demo.py"))


def test_a_hub_that_another_program_has_open_is_noticed(tmp_path):
    folder = tmp_path / "hub"
    assert not DEMO["is_open"](folder)
    with LocalHub(folder):
        assert DEMO["is_open"](folder)
    assert not DEMO["is_open"](folder)


def test_what_an_interrupted_demo_left_half_written_is_no_open_hub(tmp_path):
    (tmp_path / "state.db").write_bytes(b"half of a file" * 100)
    assert not DEMO["is_open"](tmp_path)


def test_the_two_texts_share_no_paragraph(tmp_path, monkeypatch):
    monkeypatch.setitem(DEMO["write_texts"].__globals__, "ROOT", tmp_path)
    first, second = (
        (tmp_path / each).read_text(encoding="utf-8").split("\n\n")
        for each in DEMO["write_texts"](tmp_path / "texts")
    )
    assert len(first) > 100
    assert set(first).isdisjoint(second)


def test_the_demo_hub_has_the_model_and_the_texts_of_a_runner(tmp_path):
    with LocalHub(tmp_path) as hub:
        DEMO["fill"](hub)
        assert ("model", "team/sample-2m") in hub.repos
        assert sum(kind == "dataset" for kind, _ in hub.repos) == 2


def test_settings_of_this_shell_do_not_reach_the_demo(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNQUANT_DATABASE_URL", "postgresql://production.example/jobs")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    with LocalHub() as hub:
        found = DEMO["environment"](hub, tmp_path)
    assert not {"DYNQUANT_DATABASE_URL", "HF_HUB_OFFLINE"} & set(found)
    assert found["NO_PROXY"] == "intranet.example,127.0.0.1,localhost"
    assert found["HF_ENDPOINT"] == hub.url
