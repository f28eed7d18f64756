"""The command of a Job: pinned code, and words that no shell reads."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.errors import InvalidOptionError
from dynquant.rented.command import LABEL, job_command, labels_of, pinned_requirement

COMMIT = "0123456789abcdef0123456789abcdef01234567"
URL = "https://huggingface.co/spaces/you/dynquant"


def pinned(**given: str | None) -> str:
    return pinned_requirement("0.1.0", **{"installed_from": None, "chosen": None} | given)


def test_a_release_from_an_index_is_the_release_that_runs_here():
    assert pinned() == "dynquant==0.1.0"


def test_what_was_installed_from_git_is_installed_from_the_same_commit():
    origin = {"url": URL, "vcs_info": {"vcs": "git", "commit_id": COMMIT}}
    assert pinned(installed_from=json.dumps(origin)) == f"dynquant @ git+{URL}@{COMMIT}"


@pytest.mark.parametrize(
    "origin",
    [
        {"url": "file:///home/you/dynquant", "dir_info": {"editable": True}},
        {"url": "https://x.example/dynquant.whl", "archive_info": {}},
        {"url": "file:///home/you/dynquant", "vcs_info": {"vcs": "git", "commit_id": COMMIT}},
    ],
)
def test_a_folder_of_this_machine_is_no_code_for_a_job(origin):
    with pytest.raises(InvalidOptionError, match="DYNQUANT_HUB_JOBS_SOURCE"):
        pinned(installed_from=json.dumps(origin))


@pytest.mark.harden("supply chain")
@pytest.mark.parametrize(
    "source",
    ["main", f"git+{URL}@main", f"git+{URL}", f"git+{URL}@{COMMIT[:12]}", f"git+http://x/y@{COMMIT}",
     "0.1.0 --index-url https://x", "dynquant", ">=0.1"],
)  # fmt: skip
def test_a_source_that_could_change_is_refused(source):
    with pytest.raises(InvalidOptionError, match="must be a release"):
        pinned(chosen=source)


def test_a_chosen_release_or_commit_is_taken():
    assert pinned(chosen="0.2.0rc1") == "dynquant==0.2.0rc1"
    assert pinned(chosen=f"git+{URL}@{COMMIT}") == f"dynquant @ git+{URL}@{COMMIT}"


def test_labels_say_what_was_asked_for_and_hold_none_of_it():
    words = ["convert", "org/secret-model", "--bpw", "4.5"]
    labels = labels_of("dynquant==0.1.0", words)
    assert labels == labels_of("dynquant==0.1.0", words)
    assert labels != labels_of("dynquant==0.1.0", [*words, "--public"])
    assert labels != labels_of("dynquant==0.1.0", ["convert", "org/secret-model --bpw", "4.5"])
    assert set(labels) == {LABEL}
    assert all(value.isalnum() and len(value) <= 100 for value in labels.values())


UV = r"""#!/bin/sh
echo "uv $*" >>"$LOG"
if [ "$1" = venv ]; then
    mkdir -p "$3/bin"
    cp "$0.program" "$3/bin/dynquant"
fi
"""
PROGRAM = r"""#!/bin/sh
for word; do printf '%s\0' "$word"; done >"$LOG.words"
"""


def ran(folder: Path, command: list[str]) -> tuple[list[str], list[str]]:
    """The calls of uv, and the words that dynquant got."""
    folder.mkdir(exist_ok=True)
    uv, program, log = (folder / name for name in ("uv", "uv.program", "log"))
    for path, text in ((uv, UV), (program, PROGRAM)):
        path.write_text(text)
        path.chmod(0o755)
    log.unlink(missing_ok=True)
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "LOG": str(log), "TMPDIR": str(folder)}
    environment |= {"JOB_ID": "c0ffee"}
    subprocess.run(command, env=environment, check=True)
    words = Path(f"{log}.words").read_bytes().decode().split("\0")[:-1]
    return log.read_text().splitlines(), words


@pytest.mark.harden("supply chain")
def test_packages_come_by_hash_from_the_lock_of_that_dynquant(tmp_path):
    asked, words = ran(tmp_path, job_command("dynquant==0.1.0", ["convert", "org/Model"]))
    assert words == ["convert", "org/Model"]
    _, itself, packages = asked
    assert itself.endswith("--no-deps dynquant==0.1.0")
    assert "--no-deps --only-binary :all: --require-hashes" in packages
    assert packages.endswith("share/dynquant/cuda.lock")


@pytest.mark.harden("secrets")
@given(words=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1))
def test_no_word_is_read_by_the_shell(words, tmp_path_factory):
    _, got = ran(tmp_path_factory.getbasetemp() / "words", job_command("dynquant==0.1.0", words))
    assert got == words
