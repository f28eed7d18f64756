from __future__ import annotations

import io
import os
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dynquant.cli import console
from dynquant.cli.starting import make_ready
from dynquant.errors import InvalidOptionError
from dynquant.in_process import QuantizedModel
from dynquant.jobs.job import Job, JobState, StepProgress
from dynquant.jobs.request import JobRequest
from tests.report.card_factories import make_facts

pytestmark = pytest.mark.harden("mishaps")


@pytest.fixture(autouse=True)
def temporary_folder_as_before(monkeypatch) -> None:
    monkeypatch.setenv("TMPDIR", tempfile.gettempdir())
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture(params=["stdout", "stderr"])
def ascii_stream(request, monkeypatch) -> io.TextIOWrapper:
    """A terminal, or a file, of ASCII alone."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, request.param, stream)
    make_ready()
    return stream


def written(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode("ascii")


def test_characters_that_a_terminal_lacks_are_written_as_similar_ones(ascii_stream):
    ascii_stream.write("“café” — 3×2 ± 1 … 語 🙂 \udcff\n")
    assert written(ascii_stream) == '"cafe" - 3x2 +- 1 ... ? ? ?\n'


def test_everything_that_commands_show_can_be_written_in_ascii(monkeypatch, tmp_path):
    streams = {}
    for name in ("stdout", "stderr"):
        streams[name] = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
        monkeypatch.setattr(sys, name, streams[name])
    make_ready()
    facts = make_facts(num_blocks=2)
    console.print_finished([QuantizedModel(facts=facts, folder=tmp_path / "ü×", sample="語 🙂")])
    job = Job(
        id="c0ffee",
        request=JobRequest(model="org/mödel", targets_bpw=(4.5,), requester="örg"),
        recipe_version=1,
        submitted_at=datetime.now(UTC),
        state=JobState.RUNNING,
        progress=StepProgress(step="measure", fraction=0.5, sentence="läuft — 3×"),
    )
    console.print_jobs([job], [])
    console.print_job(job)
    with console.ConsoleProgress().track({"measure": 2}) as on_step:
        on_step("measure")
    console.stderr.print("Error: „—“")
    assert "org/model" in written(streams["stdout"])
    assert "+-" in written(streams["stdout"])
    assert "Measuring costs" in written(streams["stderr"])


def test_bytes_that_are_no_text_are_refused_as_words_of_a_command():
    make_ready(["quantize", "org/mödel"])
    with pytest.raises(InvalidOptionError, match=r"'--out=\?' has bytes that are no text.*UTF-8"):
        make_ready(["quantize", "--out=\udcff"])


def test_a_folder_to_work_in_that_is_gone_is_refused(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(InvalidOptionError, match="is gone or cannot be entered"):
        make_ready()


def test_mlx_is_told_the_temporary_folder_that_python_takes(tmp_path, monkeypatch):
    for wrong in (tmp_path / "missing", tmp_path / "file"):
        (tmp_path / "file").touch()
        monkeypatch.setenv("TMPDIR", str(wrong))
        monkeypatch.setattr(tempfile, "tempdir", None)
        make_ready()
        assert tempfile.gettempdir() != str(wrong)
        assert Path(os.environ["TMPDIR"]).is_dir()
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    make_ready()
    assert os.environ["TMPDIR"] == str(tmp_path)
