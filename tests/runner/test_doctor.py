from __future__ import annotations

import sys
from contextlib import closing

import pytest
import sqlalchemy as sa
from huggingface_hub import close_session, constants

from dynquant.jobs import tables
from dynquant.jobs.board import DatabaseBoard
from dynquant.jobs.database import Database
from dynquant.jobs.request import JobRequest
from dynquant.runner import doctor
from dynquant.runner.doctor import examine
from local_hub import LocalHub

pytestmark = [pytest.mark.hub]

TOKEN = "hf_canaryCanaryCanary"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with LocalHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses"))
        yield hub
        close_session()


def findings(tmp_path, **environment: str):
    found = examine({"DYNQUANT_HOME": str(tmp_path), "DYNQUANT_RUNNER_ID": "mac", **environment})
    return {each.what: each for each in found}


def test_a_machine_that_has_everything_is_good_and_nothing_is_changed(hub, tmp_path, monkeypatch):
    hub.add_user("you", token=TOKEN, orgs={"team": "write"})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = findings(tmp_path)
    assert set(found) == {
        "Python", "settings", "home", "characters", "MLX", "images", "OpenBLAS", "sandbox",
        "memory", "disk", "database", "connection", "Hub token",
    }  # fmt: skip
    # The size of the disk and the installed programs depend on the machine.
    assert all(each.good for each in found.values() if each.what not in {"disk", "OpenBLAS"})
    assert "'mac'" in found["settings"].sentence
    assert "can be written" in found["home"].sentence
    assert "UTF-8" in found["characters"].sentence
    assert "MLX 0." in found["MLX"].sentence
    assert "mlx-vlm" in found["images"].sentence
    blas = found["OpenBLAS"]
    assert blas.good or "apt-get install libopenblas0-pthread" in blas.sentence
    assert "without a proxy" in found["connection"].sentence
    assert "no network" in found["sandbox"].sentence
    assert "you, team" in found["Hub token"].sentence
    assert "sqlite answers; 0 runners" in found["database"].sentence
    assert TOKEN not in str(found)


def test_without_mlx_vlm_it_is_said_that_towers_are_left_out(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda _name: None)
    found = findings(tmp_path)["images"]
    assert found.good
    assert "become text models" in found.sentence
    assert "dynquant[vlm]" in found.sentence


def test_every_line_that_is_not_good_says_what_to_do(hub, tmp_path, monkeypatch):
    hub.add_user("reader", token=TOKEN, role="read")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = findings(
        tmp_path,
        DYNQUANT_DATABASE_URL="postgresql://u:s3cret-pw@127.0.0.1:9/none",
        DYNQUANT_INBOX_REPO="you/inbox",
        DYNQUANT_SPACE_URL="http://127.0.0.1:9",
        DYNQUANT_SPACE_SECRET="0123456789abcdef",
    )
    for what in ("database", "Hub token", "inbox", "Space"):
        assert not found[what].good, what
    assert "may only read" in found["Hub token"].sentence
    assert "DYNQUANT_SPACE_URL" in found["Space"].sentence
    assert "s3cret-pw" not in str(found)
    assert "0123456789abcdef" not in str(found)


def test_entries_of_the_queue_that_were_set_aside_are_named(hub, tmp_path):
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    with closing(DatabaseBoard(url)) as board, closing(Database(url)) as database:
        request = JobRequest(model="org/M", targets_bpw=(4.5,), requester="ann")
        job = board.submit(
            request, revision_sha="c0ffee", source_is_private=False, recipe_version=1
        )
        with database.writing() as connection:
            connection.execute(sa.update(tables.jobs).values(document="{}"))
        assert board.list() == ()
    found = findings(tmp_path, DYNQUANT_DATABASE_URL=url)["database"]
    assert found.good
    assert f"set aside: 1; the last one was job '{job.id}'" in found.sentence
    assert "not a job of this version" in found.sentence


def test_without_a_token_the_doctor_says_how_to_get_one(hub, tmp_path):
    found = findings(tmp_path)["Hub token"]
    assert not found.good
    assert "HF_TOKEN" in found.sentence


@pytest.mark.harden("mishaps")
def test_what_of_the_environment_cannot_work_is_said(hub, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ALL_PROXY", "socks://ann:s3cret-pw@127.0.0.1:1")
    monkeypatch.setenv("HF_TOKEN", f'"{TOKEN}"')
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    space = {"DYNQUANT_SPACE_URL": hub.url, "DYNQUANT_SPACE_SECRET": "0123456789abcdef"}
    found = findings(tmp_path / "file", **space)
    for what, says in {
        "home": "DYNQUANT_HOME",
        "characters": "C.UTF-8",
        "connection": "ALL_PROXY names a proxy of the kind 'socks'",
        "Hub token": "The token in HF_TOKEN has quotes around it",
        "Space": "ALL_PROXY",
    }.items():
        assert not found[what].good, what
        assert says in found[what].sentence
    for secret in ("s3cret-pw", TOKEN):
        assert secret not in str(found)


@pytest.mark.harden("mishaps")
def test_a_proxy_that_can_work_is_named(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "localhost")
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    found = findings(tmp_path)
    assert found["connection"].good
    assert "through the proxy that ALL_PROXY names" in found["connection"].sentence


@pytest.mark.harden("mishaps")
def test_a_finding_that_fails_itself_leaves_the_others(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("DYNQUANT_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "reach", lambda: 1 / 0)
    found = findings(tmp_path)
    assert not found["sandbox"].good
    assert "did not foresee (ZeroDivisionError" in found["sandbox"].sentence
    assert found["memory"].good


def test_settings_that_make_no_sense_are_the_only_thing_to_mend(tmp_path):
    found = findings(tmp_path, DYNQUANT_CONCURRENCY="many")
    assert set(found) == {"Python", "settings"}
    assert "DYNQUANT_CONCURRENCY" in found["settings"].sentence


@pytest.mark.harden("secrets")
@pytest.mark.parametrize(
    ("role", "extra", "words"),
    [
        ("write", (), "you, team; a fine-grained token for one namespace is safer."),
        ("fineGrained", (), "may publish to: you, team."),
        ("fineGrained", ("inference.endpoints.write", "job.write"), "not need: inference.e"),
    ],
)
def test_a_token_that_may_do_more_than_it_needs_is_said_to(
    hub, tmp_path, monkeypatch, role, extra, words
):
    hub.add_user("you", token=TOKEN, role=role, orgs={"team": "write"})
    hub.permissions = ("repo.content.read", "repo.write", *extra)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = findings(tmp_path)["Hub token"]
    assert found.good
    assert words in found.sentence


@pytest.mark.harden("secrets")
def test_a_fine_grained_token_that_may_write_nowhere_is_not_good(hub, tmp_path, monkeypatch):
    hub.add_user("you", token=TOKEN, role="fineGrained")
    hub.permissions = ("repo.content.read",)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    found = findings(tmp_path)["Hub token"]
    assert not found.good
    assert "may write to no namespace" in found.sentence
