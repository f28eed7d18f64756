from __future__ import annotations

import subprocess
import sys

from dynquant.jobs.served import announced, served_queue

URL = "sqlite:////somewhere/jobs.sqlite"


def test_a_queue_is_found_while_it_is_served(tmp_path):
    home = tmp_path / "home"
    assert served_queue(home) is None
    with announced(URL, home=home):
        assert served_queue(home) == URL
    assert served_queue(home) is None
    assert list(home.iterdir()) == []


def test_a_queue_of_a_process_that_was_killed_is_not_served(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "served-queue").write_text(f"{ended.pid}\n{URL}\n")
    assert served_queue(tmp_path) is None


def test_what_is_no_announcement_is_none(tmp_path):
    for text in ("", "x\ny\n", "-1\n", f"{10**30}\n{URL}\n"):
        (tmp_path / "served-queue").write_text(text)
        assert served_queue(tmp_path) is None
