"""Wishes that cannot come true are refused before a download or a measurement."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynquant.cli.options import model_in
from tests.command_line import MODEL, QUICK, call, needs_shared

NOWHERE = "org/no-such-model"
"""The Hub is not asked for it: the option is refused first."""


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("measure", ("--effort", "most", "--out", "t.json"), "There is no effort 'most'"),
        ("quantize", ("--effort", "most", "--bpw", "4", "--out", "q"), "no effort 'most'"),
        ("convert", ("--effort", "most", "--bpw", "4", "--to", "you"), "no effort 'most'"),
        ("submit", ("--effort", "most", "--bpw", "4", "--to", "you"), "effort"),
        ("measure", ("--encoder", "best", "--out", "t.json"), "no encoder 'best'"),
    ],
)
def test_an_option_that_does_not_exist_is_refused_before_the_model_is_looked_up(
    command, options, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    ended = call(command, NOWHERE, *options)
    assert ended.code == 2
    assert said in ended.err


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="this system has no /proc")
@pytest.mark.parametrize("place", ["/proc/nowhere", "/proc/nowhere/deeper"])
def test_a_place_where_even_root_cannot_write_is_refused_before_the_model_is_looked_up(place):
    for words in (
        ("measure", NOWHERE, "--out", f"{place}/table.json"),
        ("quantize", NOWHERE, "--bpw", "4.5", "--out", place),
    ):
        ended = call(*words)
        assert ended.code == 2
        assert "cannot be written. Pass another --out" in ended.err


def test_trying_a_place_leaves_nothing_there(tmp_path):
    call("quantize", NOWHERE, "--bpw", "4.5", "--out", tmp_path / "quants")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "model"),
    [
        (" Qwen/Qwen3-8B ", "Qwen/Qwen3-8B"),
        ("https://huggingface.co/Qwen/Qwen3-8B/tree/main", "Qwen/Qwen3-8B"),
        ("hf.co/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("http://127.0.0.1:8811/team/sample-2m", "team/sample-2m"),
        ("./folder", "./folder"),
    ],
)
def test_a_model_is_taken_as_the_pages_take_it(text, model):
    assert model_in(text) == model


def test_a_folder_keeps_its_name_whatever_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(" hf.co", "a b").mkdir(parents=True)
    assert model_in(" hf.co/a b") == " hf.co/a b"


@needs_shared
def test_an_interrupted_run_keeps_its_measurement_and_goes_on_from_it(tmp_path, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    wish = ("quantize", MODEL, "--bpw=4.5", "--out", tmp_path / "quants", *QUICK)
    with monkeypatch.context() as patch:
        patch.setattr("dynquant.convert.Conversion.encode", interrupted)
        ended = call(*wish)
    assert ended.code == 130
    table = tmp_path / "quants.cost_table.json"
    assert ended.err.splitlines()[-1].startswith("Interrupted. The download is kept")
    assert f"add --cost-table {table} to the same command." in ended.err
    assert not (tmp_path / "quants").exists()
    call(*wish, "--cost-table", table).check()

    with monkeypatch.context() as patch:
        patch.setattr("dynquant.cli.conversion.quantize", interrupted)
        again = call(*wish)
    assert "Downloaded files are kept: the same command goes on after them." in again.err
