from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

import pytest
import sqlalchemy as sa

from dynquant.errors import InvalidOptionError
from dynquant.settings import Settings, unknown_variables, user_name

NAMES = ("LOGNAME", "USER", "LNAME", "USERNAME")


def read(**environment: str) -> Settings:
    return Settings.from_environment({f"DYNQUANT_{k}": v for k, v in environment.items()})


def test_nothing_needs_to_be_set():
    settings = read()
    assert settings.home == Path("~/.dynquant").expanduser()
    assert settings.database_url == f"sqlite:///{settings.home}/jobs.sqlite"
    assert (settings.concurrency, settings.daily_limit) == (1, None)
    assert settings.runner_id


def test_the_database_is_in_the_home_folder_unless_named(tmp_path):
    assert read(HOME=str(tmp_path)).database_url == f"sqlite:///{tmp_path}/jobs.sqlite"
    url = "postgresql://me:pass@db.example.org/jobs"
    assert read(HOME=str(tmp_path), DATABASE_URL=url).database_url == url


def test_everything_can_be_set():
    settings = read(
        RUNNER_ID="mac-studio.1",
        CONCURRENCY="2",
        DAILY_LIMIT="10",
        MEMORY_GB="96.5",
        CACHE_DIR="/cache",
        CACHE_GB="500",
        INBOX_REPO="me/inbox",
        SPACE_URL="https://me-dynquant.hf.space/",
        SPACE_SECRET="0123456789abcdef",
    )
    assert (settings.runner_id, settings.concurrency) == ("mac-studio.1", 2)
    assert settings.daily_limit == 10
    assert settings.memory_bytes == 96_500_000_000
    assert (settings.cache_dir, settings.cache_bytes) == (Path("/cache"), 500 * 10**9)
    assert (settings.inbox_repo, settings.space_url) == ("me/inbox", "https://me-dynquant.hf.space")


def test_an_empty_variable_is_as_good_as_none():
    assert read(DAILY_LIMIT="", CONCURRENCY=" ", RUNNER_ID="").concurrency == 1


@pytest.mark.parametrize(
    ("host", "runner_id"),
    [("Anns-Mac.local", "anns-mac"), ("..", "runner"), ("x" * 80, "x" * 64)],
)
def test_the_runner_is_called_as_the_machine_is(monkeypatch, host, runner_id):
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert read().runner_id == runner_id


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "mysql://host/db"),
        ("DATABASE_URL", "jobs.sqlite"),
        ("DATABASE_URL", "sqlite://"),
        ("DATABASE_URL", "postgresql://user:hunter2@host"),
        ("DATABASE_URL", "postgresql://user:hunter2@[::1/jobs"),
        ("RUNNER_ID", "Ann's Mac"),
        ("RUNNER_ID", "x" * 65),
        ("RUNNER_ID", "-"),
        ("CONCURRENCY", "0"),
        ("CONCURRENCY", "65"),
        ("CONCURRENCY", "two"),
        ("DAILY_LIMIT", "-1"),
        ("DAILY_LIMIT", "1.5"),
        ("MEMORY_GB", "0"),
        ("MEMORY_GB", "nan"),
        ("CACHE_GB", "lots"),
        ("LOCAL_TEXTS", "perhaps"),
        ("INBOX_REPO", "inbox"),
        ("PUBLISH_TO", "a,b"),
        ("SPACE_URL", "http://me.hf.space"),
        ("SPACE_URL", "https://[::1"),
        ("SPACE_SECRET", "short"),
        ("CACHE_DIR", "\udcff"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_by_its_variable_and_not_repeated(name, value):
    with pytest.raises(InvalidOptionError) as caught:
        read(**{name: value})
    assert str(caught.value).startswith(f"DYNQUANT_{name} must ")
    assert str(caught.value).endswith(".")
    assert "hunter2" not in str(caught.value)


def test_a_space_needs_a_secret():
    with pytest.raises(InvalidOptionError, match="needs DYNQUANT_SPACE_SECRET"):
        read(SPACE_URL="https://me.hf.space")


def test_a_local_space_needs_no_https():
    settings = read(SPACE_URL="http://127.0.0.1:7860", SPACE_SECRET="0123456789abcdef")
    assert settings.space_url == "http://127.0.0.1:7860"


def test_nobody_sees_a_secret_by_printing_the_settings():
    text = repr(read(DATABASE_URL="postgresql://u:hunter2@h/db", SPACE_SECRET="0123456789abcdef"))
    assert "hunter2" not in text
    assert "0123456789abcdef" not in text


def test_only_a_cache_of_our_own_has_a_bound(tmp_path):
    home = {"DYNQUANT_HOME": str(tmp_path)}
    assert Settings.from_environment(home).cache_dir is None
    bounded = Settings.from_environment(home | {"DYNQUANT_CACHE_GB": "500"})
    assert bounded.cache_dir == tmp_path / "cache"
    assert bounded.cache_bytes == 500 * 10**9


@pytest.mark.parametrize("name", ["a b", "100%41", "what?x", "ü#y"])
def test_the_database_is_in_the_home_folder_whatever_that_is_called(tmp_path, name):
    url = read(HOME=str(tmp_path / name)).database_url
    assert sa.make_url(url).database == f"{tmp_path / name}/jobs.sqlite"


def nobody(uid: int) -> None:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


@pytest.fixture
def nameless(monkeypatch) -> None:
    """A user id without an entry, as in containers, and no variable that helps."""
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in (*NAMES, "HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.harden("mishaps")
def test_a_user_without_a_name_has_one(nameless, monkeypatch):
    assert user_name() == f"uid-{os.getuid()}"
    for value, name in (("ann", "ann"), ("a\nb\udcff", "ab"), ("x" * 99, "x" * 64), ("\t", "uid-")):
        monkeypatch.setenv("USER", value)
        assert user_name().startswith(name)
        assert len(user_name()) <= 64


@pytest.mark.harden("mishaps")
def test_a_user_without_a_home_has_to_name_a_folder(nameless, tmp_path):
    with pytest.raises(InvalidOptionError, match=r"^DYNQUANT_HOME must be set.*HOME is not set"):
        read()
    settings = read(HOME=str(tmp_path))
    assert settings.home == tmp_path
    assert settings.cache_dir == tmp_path / "cache"  # the client's own would be a folder named '~'
    named = {"DYNQUANT_HOME": str(tmp_path), "HF_HOME": "/cache"}
    assert Settings.from_environment(named).cache_dir is None


@pytest.mark.harden("mishaps")
@pytest.mark.parametrize("name", ["HOME", "CACHE_DIR", "WATCH_CONFIG"])
def test_the_home_of_a_user_that_is_not_here_is_refused(name):
    with pytest.raises(InvalidOptionError, match=f"^DYNQUANT_{name} begins with '~'"):
        read(**{name: "~nobody-of-that-name/x"})


def test_a_misspelt_variable_is_named_with_the_one_that_is_meant():
    assert unknown_variables({"DYNQUANT_PUBLISHTO": "x", "PATH": "/bin"}) == [
        "dynquant does not know the variable DYNQUANT_PUBLISHTO. Did you mean DYNQUANT_PUBLISH_TO?"
    ]
    (far,) = unknown_variables({"DYNQUANT_XYZZY": ""})
    assert far.endswith("docs/runner.md has a list.")


def test_every_variable_that_the_code_reads_is_known():
    root = Path(__file__).parents[1]
    files = [*root.glob("dynquant/**/*.py"), *root.glob("tests/**/*.py"), root / "app.py"]
    files = [path for path in files if path.name != "test_settings.py"]
    named = {
        name
        for path in files
        for name in re.findall(r"\bDYNQUANT_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8"))
    }
    assert unknown_variables(dict.fromkeys(named, "")) == []
    assert len(named) > 20
