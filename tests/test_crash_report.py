from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from dynquant import __version__
from dynquant.crash_report import report_crash

pytestmark = pytest.mark.harden("mishaps")

TOKEN = "hf_" + "AbC1" * 9


def crash(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301
    except BaseException as raised:  # noqa: BLE001
        return raised


def reports(home: Path) -> list[Path]:
    return sorted((home / "logs").glob("crash-*.txt"))


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DYNQUANT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_sentence_names_the_error_and_the_file_and_no_folder_of_this_machine(home):
    sentence = report_crash(crash(KeyError("slip")))
    (report,) = reports(home)
    assert sentence == (
        "Something went wrong that dynquant did not foresee (KeyError: 'slip'). The details are "
        f"in the file 'logs/{report.name}' in the folder of DYNQUANT_HOME (~/.dynquant if unset); "
        "please report it with that file."
    )
    assert stat.S_IMODE(report.stat().st_mode) == 0o600


def test_the_file_has_the_traceback_the_versions_and_the_command_without_its_values(home):
    words = ("quantize", "me/private-model", "--bpw=4.5", "--out", "/home/ann/quants")
    report_crash(crash(KeyError("slip")), words=words)
    text = reports(home)[0].read_text()
    assert f"dynquant {__version__}, Python " in text
    assert "mlx-lm 0." in text
    assert "command: quantize --bpw --out\n" in text
    assert "private-model" not in text
    assert "Traceback (most recent call last):" in text
    assert "in crash" in text
    assert text.endswith("KeyError: 'slip'\n\n")


def test_neither_secrets_nor_folders_of_this_machine_are_in_the_file_or_the_sentence(
    home, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("DYNQUANT_SPACE_SECRET", "0123456789abcdef")
    error = ValueError(f"{TOKEN} and 0123456789abcdef in {Path.home()}/x of {Path.cwd()}/y")
    sentence = report_crash(crash(error))
    for text in (sentence, reports(home)[0].read_text()):
        for hidden in (TOKEN, "0123456789abcdef", f"{Path.home()}/", f"{Path.cwd()}/", sys.prefix):
            assert hidden not in text
        assert "~/x of …/y" in text


def test_where_home_cannot_be_written_the_file_is_among_the_temporary_ones(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("DYNQUANT_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    sentence = report_crash(crash(KeyError("slip")))
    (report,) = tmp_path.glob("dynquant-crash-*.txt")
    assert f"'{report.name}' in the folder for temporary files" in sentence
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert "there is no folder to write the details to" in report_crash(crash(KeyError("slip")))


def test_settings_that_make_no_sense_do_not_hide_a_crash(tmp_path, monkeypatch):
    monkeypatch.setenv("DYNQUANT_CONCURRENCY", "many")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert "temporary files" in report_crash(crash(KeyError("slip")))


def test_a_library_that_ends_the_program_is_told_as_that(home):
    sentence = report_crash(crash(SystemExit("pip install ai2-olmo")))
    assert sentence.startswith("A library ended dynquant (pip install ai2-olmo).")


def test_a_message_of_many_lines_is_one_and_of_bounded_length(home):
    sentence = report_crash(crash(ValueError("a\nb " * 1000)))
    assert "(ValueError: a b a b" in sentence
    assert len(sentence) < 700
    assert "\n" not in sentence


def test_text_that_cannot_be_encoded_is_written_all_the_same(home):
    report_crash(crash(ValueError("\udcff")))
    assert "\\udcff" in reports(home)[0].read_text()


def test_only_the_latest_reports_are_kept(home):
    folder = home / "logs"
    folder.mkdir(parents=True)
    for i in range(30):
        (folder / f"crash-20200101-0000{i:02}-1.txt").touch()
    (folder / "dynquant.log").touch()
    report_crash(crash(KeyError("slip")))
    found = reports(home)
    assert len(found) == 20
    assert str(os.getpid()) in found[-1].name
    assert (folder / "dynquant.log").exists()
