from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dynquant.cli import publishing
from dynquant.errors import HubUnavailableError, InvalidOptionError
from tests.command_line import Finished, call

pytestmark = pytest.mark.harden("mishaps")

TOKEN = "hf_canaryCanaryCanary"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DYNQUANT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def ended_by(monkeypatch) -> Callable[[BaseException | Callable[[], None]], Finished]:
    """How a command ends in the middle of which something is raised or done."""

    def run(what: BaseException | Callable[[], None]) -> Finished:
        def finished_folders(_folder: Path) -> list[Path]:
            if isinstance(what, BaseException):
                raise what
            what()
            return []

        monkeypatch.setattr(publishing, "finished_folders", finished_folders)
        return call("card", ".")

    return run


def assert_a_sentence(finished: Finished, code: int, *says: str) -> None:
    assert (finished.code, finished.out) == (code, "")
    (line,) = finished.err.splitlines()
    assert line.startswith("Error: ")
    assert line.endswith(".")
    for each in says:
        assert each in line


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InvalidOptionError("Pass another one."), 2, "Pass another one"),
        (HubUnavailableError("Try again."), 3, "Try again"),
        (OSError(errno.ENOSPC, "x"), 3, "disk is full"),
        (OSError(errno.EROFS, "x"), 3, "disk is full"),
        (RuntimeError("Cannot write: No space left on device"), 3, "disk is full"),
        (MemoryError(), 3, "not enough memory"),
        (RuntimeError("[malloc] Unable to allocate 99 bytes"), 3, "not enough memory"),
        (ModuleNotFoundError("No module named 'mlx'", name="mlx"), 2, "dynquant[mlx]"),
        (ImportError("libcuda.so.1: cannot open shared object file"), 2, "no NVIDIA driver"),
        (KeyError("slip"), 1, "did not foresee (KeyError: 'slip')"),
        (PermissionError(errno.EACCES, "x"), 1, "did not foresee (PermissionError"),
        (SystemExit("pip install ai2-olmo"), 1, "A library ended dynquant (pip install ai2-olmo)"),
        (SystemExit(0), 1, "A library ended dynquant (0)"),
    ],
)
def test_whatever_ends_a_command_is_one_sentence(ended_by, error, code, says):
    assert_a_sentence(ended_by(error), code, says)


def test_a_crash_names_the_file_with_its_details(ended_by, home):
    finished = ended_by(KeyError("slip"))
    (report,) = (home / "logs").iterdir()
    assert f"'logs/{report.name}'" in finished.err
    assert "in finished_folders" in report.read_text()
    assert "command: card" in report.read_text()


def test_what_was_published_before_is_told_besides(ended_by):
    error = HubUnavailableError("Try again.")
    error.published = (("you/a", "c0ffee"), ("you/b", "c0ffee"))
    finished = ended_by(error)
    assert finished.code == 3
    assert finished.err == "Error: Try again.\nPublished before that: you/a, you/b.\n"


def test_ctrl_c_and_a_reader_that_is_gone_need_no_sentence(ended_by, monkeypatch):
    assert ended_by(KeyboardInterrupt()) == Finished(130, "", "Interrupted.\n")
    assert ended_by(BrokenPipeError()) == Finished(141, "", "")


def test_usage_errors_are_those_of_typer():
    finished = call("card")
    assert finished.code == 2
    assert "Missing argument" in finished.err
    assert call("--help").code == 0


def fail() -> None:
    raise KeyError(TOKEN)


def test_an_error_in_a_thread_is_a_line_without_a_traceback(ended_by):
    def work() -> None:
        thread = threading.Thread(target=fail, name="looks")
        thread.start()
        thread.join()

    before = threading.excepthook
    finished = ended_by(work)
    assert finished.code == 0
    assert "Something went wrong in 'looks' (KeyError: '[redacted]')" in finished.err
    assert finished.err.count("\n") == 1
    assert threading.excepthook is before


def test_what_is_logged_has_no_traceback_and_no_token(ended_by):
    def work() -> None:
        try:
            fail()
        except KeyError as error:
            logging.getLogger("dynquant.hub.calls").warning("It failed", exc_info=error)

    finished = ended_by(work)
    assert finished.code == 0
    assert "It failed (KeyError: '[redacted]')" in finished.err
    assert finished.err.count("\n") == 1
