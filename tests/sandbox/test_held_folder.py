from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from dynquant.sandbox.held_folder import HeldFolder, UnexpectedEntryError
from tests.hardening import long_form

pytestmark = pytest.mark.harden("child and runner")


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder to hold, and beside it what is nobody's business."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "secret").write_text("secret")
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def make_hole(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**12)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        folder = os.open(path.parent, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)


MAKERS = {
    "link": lambda path: path.symlink_to(path.parents[1] / "secret"),
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "hard link": lambda path: path.hardlink_to(path.parents[1] / "secret"),
    "hole": make_hole,
    "too large": lambda path: path.write_text("x" * 11),
    "no text": lambda path: path.write_bytes(b"\xff"),
}
if sys.platform == "linux":
    MAKERS["socket"] = make_socket


@pytest.mark.parametrize("kind", MAKERS)
def test_only_a_plain_file_of_its_own_is_read(place, kind, harden):
    MAKERS[kind](place / "it")
    before = psutil.Process().num_fds()
    with HeldFolder.open(place) as held, pytest.raises(UnexpectedEntryError) as caught:
        held.read_text("it", max_bytes=10)
    assert "secret" not in str(caught.value)
    assert psutil.Process().num_fds() == before
    harden("refused")


def test_a_file_is_read_and_one_that_is_not_there_is_none(place):
    (place / "it").write_text("größer", encoding="utf-8")
    with HeldFolder.open(place) as held:
        assert held.read_text("it", max_bytes=8) == "größer"
        assert held.read_text("other", max_bytes=8) is None
        assert (held.has("it"), held.has("other")) == (True, False)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../secret", "/etc/passwd", "a\0b"])
def test_a_name_leads_nowhere(place, name, harden):
    with HeldFolder.open(place) as held:
        for act in (held.folder, held.remove, held.new_file, held.has):
            with pytest.raises(UnexpectedEntryError):
                act(name)
    harden("refused")


def test_a_folder_on_the_way_may_be_no_link(place, harden):
    (place / "folder").symlink_to(place.parent / "other")
    with pytest.raises(UnexpectedEntryError):
        HeldFolder.open(place, "folder")
    (place / "real").mkdir()
    (place / "real" / "folder").symlink_to(place.parent / "other")
    with pytest.raises(UnexpectedEntryError):
        HeldFolder.open(place, "real", "folder")
    with HeldFolder.open(place) as held, pytest.raises(UnexpectedEntryError):
        held.folder("folder", make=True)
    harden("refused")


def test_a_folder_that_is_moved_away_stays_the_one_that_is_held(place, harden):
    (place / "it").write_text("ours")
    with HeldFolder.open(place) as held:
        place.rename(place.with_name("away"))
        place.symlink_to(place.parent / "other")
        assert held.read_text("it", max_bytes=9) == "ours"
        held.write_text("new", "ours")
    assert not (place.parent / "other" / "new").exists()
    assert (place.with_name("away") / "new").read_text() == "ours"
    harden("refused")


def test_a_file_is_written_whole_or_not_at_all_and_through_no_link(place, harden):
    (place / "it").symlink_to(place.parent / "secret")
    with HeldFolder.open(place) as held:
        with pytest.raises(ValueError, match="bug"), held.written("it") as stream:  # noqa: PT012
            stream.write("half")
            raise ValueError("bug")
        assert [path.name for path in place.iterdir()] == ["it"]
        held.write_text("it", "new")
    assert (place / "it").read_text() == "new"
    assert not (place / "it").is_symlink()
    assert (place.parent / "secret").read_text() == "secret"
    harden("refused")


def test_what_is_staged_has_a_name_that_nobody_knows_before(place):
    names = set()
    with HeldFolder.open(place) as held:
        for _ in range(3):
            with held.written("it"):
                (staged,) = {path.name for path in place.iterdir()} - {"it"}
                names.add(staged)
    assert len(names) == 3


def test_a_new_file_is_new(place, harden):
    (place / "link").symlink_to("nowhere")
    (place / "file").touch()
    with HeldFolder.open(place) as held:
        for name in ("link", "file"):
            with pytest.raises(FileExistsError):
                held.new_file(name)
    assert not (place / "nowhere").exists()
    harden("refused")


def test_names_are_counted_before_they_are_kept(place, harden):
    for number in range(5):
        (place / f"{number}\n").touch()
    with HeldFolder.open(place) as held:
        assert held.names(at_most=5) == [f"{number}\n" for number in range(5)]
        with pytest.raises(UnexpectedEntryError, match="more than 4"):
            held.names(at_most=4)
    harden("refused")


def test_a_tree_is_removed_and_nothing_that_it_links_to(place, harden):
    tree = place / "tree"
    for name in ("a/b/c", "a/d", "e"):
        (tree / name).mkdir(parents=True)
        (tree / name / "file\n").write_text("x")
        (tree / name / "link").symlink_to(place.parent / "other")
        os.mkfifo(tree / name / "pipe")
    (place / "link").symlink_to(place.parent / "other")
    with HeldFolder.open(place) as held:
        for name in ("tree", "link", "not there"):
            held.remove(name)
    assert list(place.iterdir()) == []
    assert (place.parent / "other" / "secret").read_text() == "secret"
    harden("refused")


AS_SOMEBODY = """
import os, sys
from pathlib import Path
from dynquant.sandbox.held_folder import HeldFolder
if os.geteuid() == 0:
    os.setgid(65534), os.setuid(65534)
os.chdir(sys.argv[1])
os.mkdir('tree')
for name, mode in (('closed', 0), ('read-only', 0o500), ('unlisted', 0o300)):
    os.makedirs(f'tree/{name}/within')
    open(f'tree/{name}/within/file', 'w').close()
    os.chmod(f'tree/{name}/within', mode)
    os.chmod(f'tree/{name}', mode)
with HeldFolder.open(Path('.')) as held:
    held.remove('tree')
print(os.listdir('.'))
"""


def test_permissions_that_a_child_takes_away_do_not_keep_its_tree(harden):
    """Not even from an account that permissions hold for, which root's is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        done = subprocess.run(
            [sys.executable, "-c", AS_SOMEBODY, folder],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout == "[]\n", done.stderr
    harden("handled")


@long_form
def test_a_tree_of_a_hundred_thousand_files_and_levels_is_removed(place, harden):
    descriptor = os.open(place, os.O_RDONLY)
    for number in range(5_000):
        os.mkdir("level" if number else "tree", dir_fd=descriptor)
        inner = os.open("level" if number else "tree", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    for number in range(100_000):
        os.close(os.open(str(number), os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    with HeldFolder.open(place) as held:
        held.remove("tree")
    assert list(place.iterdir()) == []
    harden("handled")
