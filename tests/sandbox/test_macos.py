"""The profile for a Mac, of which there was none: its text, and what is done where it fails."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil
import pytest

from dynquant.sandbox import confined, macos

READABLE, WRITABLE = "/Users/op/.dynquant/jobs/1", "/Users/op/.dynquant/jobs/1/work"


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    yield
    macos._takes_all_away.cache_clear()
    macos._runs.cache_clear()


def rules(name: str) -> list[tuple[str, str]]:
    """`allow` or `deny` and what it is about, of each rule on `name` in their order."""
    text = macos.profile(readable=[READABLE], writable=[WRITABLE])
    rule = rf"^\((allow|deny) {re.escape(name)}(?:\)|\n(.*?)\n\))$"
    return re.findall(rule, text, re.MULTILINE | re.DOTALL)


def test_a_profile_is_well_formed():
    text = macos.profile(readable=['/a "b"\\c'], writable=[WRITABLE])
    without_strings = re.sub(r'#?"(\\.|[^"\\])*"', "", text)
    assert without_strings.count("(") == without_strings.count(")")
    assert '(subpath "/a \\"b\\"\\\\c")' in text
    assert text.startswith("(version 1)\n(allow default)\n(deny network*)\n")


@pytest.mark.parametrize("name", ["file-read-data", "file-write*"])
def test_files_are_taken_away_and_then_given_back_by_a_list(name):
    (first, nothing), (then, places) = rules(name)
    assert (first, nothing, then) == ("deny", "", "allow")
    assert f'(subpath "{WRITABLE}")' in places
    assert (f'(subpath "{READABLE}")' in places) == (name == "file-read-data")
    homes = [each for each in re.findall(r'"(/[^"]*)"', places) if each.startswith("/Users")]
    assert set(homes) <= {READABLE, WRITABLE}
    assert '(subpath "/")' not in places


def test_python_and_this_package_may_be_read():
    _, (_, places) = rules("file-read-data")
    folders = re.findall(r'\(subpath "(/[^"]*)"\)', places)
    for module in (re, psutil, macos):
        file = str(Path(module.__file__ or "").resolve())
        assert any(file.startswith(f"{folder}/") for folder in folders), file


def make_sandbox_exec(folder: Path, *, refuses: str) -> Path:
    """A program that is called as Apple's is, and refuses profiles with `refuses` in them."""
    program = folder / "sandbox-exec"
    program.write_text(
        "#!/bin/sh\n"
        f'case "$2" in *"{refuses}"*) echo "not such a profile" >&2; exit 65;; esac\n'
        'shift 2\nexec "$@"\n'
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize(
    ("refuses", "profile"),
    [("(refuses nothing)", "(deny file-read-data)"), ("file-read-data", "(deny network*)")],
)
def test_each_mac_tries_the_profile_with_mlx_and_takes_less_where_that_fails(
    tmp_path, monkeypatch, refuses, profile
):
    pytest.importorskip("mlx.core")
    program = make_sandbox_exec(tmp_path, refuses=refuses)
    monkeypatch.setattr(macos, "_IS_MAC", True)
    monkeypatch.setattr(macos, "_PROGRAM", str(program))
    monkeypatch.setattr(macos, "_TRY_MLX", "import mlx.core")  # without a compiler's seconds
    command = confined(["true"], writable=[tmp_path])
    assert command[:2] == [str(program), "-p"]
    assert profile in command[2]
    assert command[3] == sys.executable


def test_where_no_profile_works_the_command_runs_without_one(tmp_path, monkeypatch):
    monkeypatch.setattr(macos, "_IS_MAC", True)
    monkeypatch.setattr(macos, "_PROGRAM", str(tmp_path / "there is none"))
    assert confined(["true"], writable=[tmp_path])[0] == sys.executable


def test_elsewhere_there_is_nothing_before_a_command(tmp_path, monkeypatch):
    monkeypatch.setattr(macos, "_IS_MAC", False)
    assert macos.sandbox_exec(readable=[], writable=[str(tmp_path)]) == []
