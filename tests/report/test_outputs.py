from __future__ import annotations

import errno
import os
import resource
import tempfile
from pathlib import Path

import pytest

from dynquant.errors import OutputFolderError, StorageFullError
from dynquant.in_process import OutputStore
from dynquant.report.outputs import MARKER, OutputFolders, check_file, write_file
from dynquant.sandbox.held_folder import HeldFolder

NAMES = ["m-MLX-3.0bpw", "m-MLX-4.0bpw"]


def finish(outputs: OutputStore, names: list[str] = NAMES, content: str = "new") -> None:
    """Writes folders as a conversion does."""
    with outputs.staged(names) as folders:
        for folder in folders.values():
            (folder / "model.safetensors").write_text(content)
            outputs.write_text(folder, MARKER, "{}")


def tree(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "some" / "out"


def test_folders_take_their_final_names_only_at_the_end(root):
    outputs = OutputFolders(root)
    with outputs.staged(NAMES) as folders:
        assert not any(outputs.final(name).exists() for name in NAMES)
        assert all(list(folder.iterdir()) == [] for folder in folders.values())
        for folder in folders.values():
            outputs.write_text(folder, "a/b/README.md", "größer")
    assert sorted(path.name for path in root.iterdir()) == NAMES
    assert (root / NAMES[0] / "a/b/README.md").read_text(encoding="utf-8") == "größer"


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt()])
def test_an_error_leaves_nothing_not_even_folders_above(root, tmp_path, error):
    with pytest.raises(type(error)), OutputFolders(root).staged(NAMES):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_what_was_there_before(root):
    finish(OutputFolders(root), content="old")
    before = tree(root)
    with pytest.raises(ValueError, match="bug"), OutputFolders(root).staged(NAMES):
        raise ValueError("bug")
    assert tree(root) == before


def test_folders_of_ours_are_replaced_and_their_neighbours_kept(root):
    finish(OutputFolders(root), content="old")
    (root / NAMES[0] / "leftover").write_text("old")
    finish(OutputFolders(root), NAMES[:1], "new")
    assert tree(root / NAMES[0]) == {"model.safetensors": "new", MARKER: "{}"}
    assert tree(root / NAMES[1])["model.safetensors"] == "old"
    assert sorted(path.name for path in root.iterdir()) == NAMES


def test_what_was_made_of_another_model_is_not_replaced(root):
    finish(OutputFolders(root))
    (root / NAMES[0] / MARKER).write_text('{"source": "ann/Model"}')
    before = tree(root)
    outputs = OutputFolders(root)
    with pytest.raises(OutputFolderError, match=r"made of 'ann/Model' and not of 'bob/Model'"):
        outputs.check(NAMES, source="bob/Model")
    assert tree(root) == before
    outputs.check(NAMES, source="ann/Model")


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputFolderError, match="is a file"):
        OutputFolders(tmp_path / "out").check(NAMES)
    with pytest.raises(OutputFolderError, match="is a file"):
        OutputFolders(tmp_path / "out" / "deeper").check(NAMES)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("name", ["notes.txt", "photos/cat.jpg", f"{NAMES[0]}/model.safetensors"])
def test_a_folder_with_foreign_content_is_refused_and_left_alone(root, name):
    (root / name).parent.mkdir(parents=True)
    (root / name).write_text("mine")
    outputs = OutputFolders(root)
    with pytest.raises(OutputFolderError, match="dynquant did not make"):
        outputs.check(NAMES)
    with pytest.raises(OutputFolderError), outputs.staged(NAMES):
        pytest.fail("must not get here")
    assert tree(root) == {name: "mine"}


def test_hidden_files_of_the_system_are_no_foreign_content(root):
    root.mkdir(parents=True)
    (root / ".DS_Store").write_text("mac")
    finish(OutputFolders(root))
    assert (root / ".DS_Store").exists()


def test_what_a_killed_run_left_is_removed_by_the_next_one(root):
    for name in ("m-MLX-3.0bpw", "other-MLX-2.5bpw"):
        left = root / f".{name}.dynquant-partial"
        left.mkdir(parents=True)
        (left / "model.safetensors").write_text("half")
    finish(OutputFolders(root))
    assert sorted(path.name for path in root.iterdir()) == NAMES


def test_a_finished_folder_that_a_killed_run_had_put_aside_comes_back(root):
    finish(OutputFolders(root), content="old")
    (root / NAMES[0]).rename(root / f".{NAMES[0]}.old.dynquant-partial")
    (root / NAMES[1]).rename(root / f".{NAMES[1]}.old.dynquant-partial")
    (root / NAMES[1]).mkdir()
    (root / NAMES[1] / "dynquant").mkdir()
    (root / NAMES[1] / MARKER).write_text("newer")
    finish(OutputFolders(root), ["m-MLX-5.0bpw"])
    assert tree(root / NAMES[0])["model.safetensors"] == "old"
    assert tree(root / NAMES[1]) == {MARKER: "newer"}
    assert sorted(path.name for path in root.iterdir()) == [*NAMES, "m-MLX-5.0bpw"]


def test_two_runs_that_write_the_same_folder_do_not_meet(root):
    first, second = OutputFolders(root), OutputFolders(root)
    with first.staged(NAMES[:1]) as folders:
        first.write_text(folders[NAMES[0]], MARKER, "{}")
        with pytest.raises(OutputFolderError, match="Another run is writing 'm-MLX"):
            second.check(NAMES)
        with pytest.raises(OutputFolderError, match="Another run"), second.staged(NAMES):
            pytest.fail("must not get here")
        finish(second, NAMES[1:])  # another target may go to the same place
        assert folders[NAMES[0]].is_dir()
    assert sorted(path.name for path in root.iterdir()) == NAMES


def test_a_name_too_long_for_a_file_system_is_refused(tmp_path):
    with pytest.raises(OutputFolderError, match="cannot be written there"):
        OutputFolders(tmp_path / ("x" * 300)).check(NAMES)


def test_a_place_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    def refused(*_: object, **__: object) -> None:  # root may write everywhere
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(tempfile, "mkdtemp", refused)
    with pytest.raises(OutputFolderError, match="cannot be written"):
        OutputFolders(tmp_path / "out").check(NAMES)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EROFS, StorageFullError),
        (errno.EACCES, OutputFolderError),
        (errno.EBADF, OSError),
    ],
)
def test_errors_of_the_disk_are_put_in_our_words(root, monkeypatch, code, error):
    outputs = OutputFolders(root)

    def fail(*_args: object, **_options: object) -> None:
        raise OSError(code, os.strerror(code))

    with pytest.raises(error), outputs.staged(NAMES) as folders:  # noqa: PT012
        monkeypatch.setattr(HeldFolder, "new_file", fail)
        outputs.write_text(folders[NAMES[0]], "README.md", "text")
    assert not root.exists()


def test_a_file_is_written_whole_with_the_folders_above_it(tmp_path):
    path = tmp_path / "a" / "b" / "table.json"
    check_file(path)
    assert list(tmp_path.iterdir()) == []
    write_file(path, "new\n")
    assert tree(tmp_path) == {"a/b/table.json": "new\n"}


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # no file may be larger
    try:
        with pytest.raises(StorageFullError):
            write_file(path, "new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert tree(tmp_path) == {"table.json": "old"}


@pytest.mark.harden("child and runner")
def test_a_link_that_waits_where_a_file_is_staged_is_not_written_through(tmp_path, harden):
    (tmp_path / ".bashrc").write_text("mine")
    folder = tmp_path / "job"
    folder.mkdir()
    for name in (".table.json.dynquant-partial", "table.json"):
        (folder / name).symlink_to(tmp_path / ".bashrc")
    write_file(folder / "table.json", "theirs")
    assert (tmp_path / ".bashrc").read_text() == "mine"
    assert (folder / "table.json").read_text() == "theirs"
    harden("refused")


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with pytest.raises(OutputFolderError, match="is a folder"):
        check_file(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputFolderError, match="is a file"):
        check_file(tmp_path / "file" / "table.json")
