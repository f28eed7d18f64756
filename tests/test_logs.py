from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynquant.errors import InvalidOptionError
from dynquant.logs import (
    LOG_FILE,
    Redactor,
    configure_logging,
    job_context,
    log_to_terminal,
    secrets_in,
)

logger = logging.getLogger("dynquant.tests")

TOKEN = "hf_" + "AbC1" * 9


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("dynquant")
    before = root.handlers[:], root.level, ours.level, logging.raiseExceptions
    root.handlers[:] = []
    yield
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level, ours.level, logging.raiseExceptions = before
    logging.getLogger("dynquant").setLevel(before[2])  # forgets which levels were asked for


def fail(error: Exception) -> None:
    raise error


def lines(home: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (home / LOG_FILE).read_text().splitlines()]


def test_a_line_has_time_level_job_step_runner_and_message(tmp_path):
    configure_logging(tmp_path, secrets=[], runner_id="mac-studio")
    with job_context("c0ffee", "measure"):
        logger.info("Layer %s of %d", "a.b", 7)
    (line,) = lines(tmp_path)
    time = line.pop("time")
    assert datetime.fromisoformat(time).utcoffset() == timedelta(0)
    assert time.endswith("Z")
    assert len(time) == len("2026-01-31T12:00:00.000Z")
    assert line == {
        "level": "INFO",
        "logger": "dynquant.tests",
        "message": "Layer a.b of 7",
        "runner": "mac-studio",
        "job": "c0ffee",
        "step": "measure",
    }


def test_an_exception_is_one_field_of_one_line(tmp_path):
    configure_logging(tmp_path, secrets=[])
    try:
        fail(ValueError("two\nlines\u2028three"))
    except ValueError:
        logger.exception("It failed")
    (line,) = lines(tmp_path)
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: two\nlines\u2028three")


def test_the_job_that_a_record_names_itself_wins_over_that_of_the_thread(tmp_path):
    configure_logging(tmp_path, secrets=[])
    with job_context("c0ffee", "measure"):
        logger.info("mine", extra={"job_id": "c0ffee"})
        logger.info("another's", extra={"job_id": "bead"})
    mine, other = lines(tmp_path)
    assert (mine["job"], mine["step"]) == ("c0ffee", "measure")
    assert other["job"] == "bead"
    assert "step" not in other


def test_threads_have_their_own_jobs_and_none_afterwards(tmp_path):
    configure_logging(tmp_path, secrets=[])
    both_inside = threading.Barrier(2)

    def work(job: str) -> None:
        with job_context(job, "encode"):
            both_inside.wait()
            logger.info("in %s", job)
        logger.info("after")

    threads = [threading.Thread(target=work, args=(job,)) for job in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = lines(tmp_path)
    assert sorted(line["job"] for line in found if line["message"] != "after") == ["a", "b"]
    assert all(line["message"] == f"in {line['job']}" for line in found if "job" in line)
    assert sum("job" not in line for line in found) == 2


def test_details_are_logged_only_when_asked_for_and_those_of_libraries_never(tmp_path):
    for verbose in (False, True):
        configure_logging(tmp_path, secrets=[], verbose=verbose)
        logger.debug("detail, verbose %s", verbose)
        logging.getLogger("urllib3").info("chatter")
        logging.getLogger("urllib3").warning("trouble")
    found = [line["message"] for line in lines(tmp_path)]
    assert found == ["trouble", "detail, verbose True", "trouble"]


def test_a_terminal_gets_one_readable_line_that_cannot_move_its_cursor(tmp_path):
    terminal = Terminal()
    with contextlib.redirect_stderr(terminal):
        configure_logging(tmp_path, secrets=[])
        with job_context("c0ffee", "verify"):
            try:
                fail(OSError(f"no\nroom for {TOKEN}"))
            except OSError:
                logger.exception("Model %s", "evil\x1b[2J\nname")
    (line,) = terminal.getvalue().splitlines()
    assert line[8:] == (
        " ERROR   [c0ffee verify] Model evil [2J name (OSError: no room for [redacted])"
    )


def test_only_warnings_and_errors_go_to_a_stderr_that_is_no_terminal(tmp_path):
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        configure_logging(tmp_path, secrets=[])
        logger.info("all is well")
        logger.error("%d", "mismatched")
    (line,) = stderr.getvalue().splitlines()
    assert "ERROR" in line
    assert lines(tmp_path)[1]["message"].startswith("%d (its arguments could not be shown")


def test_all_lines_go_to_the_stderr_of_a_job_whose_disk_is_gone_with_it(tmp_path):
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        configure_logging(tmp_path, secrets=["canary-of-a-job"], all_to_stderr=True)
        logger.info("all is well, canary-of-a-job")
    (line,) = stderr.getvalue().splitlines()
    assert "all is well, [redacted]" in line


def test_the_file_rotates_and_only_five_old_ones_stay(tmp_path):
    configure_logging(tmp_path, secrets=[])
    path = tmp_path / LOG_FILE
    for number in range(8):
        with path.open("a") as file:
            file.write("x" * 10_000_000)
        logger.info("file %d", number)
    files = sorted(each.name for each in path.parent.iterdir())
    assert files == [path.name, *(f"{path.name}.{number}" for number in range(1, 6))]
    assert lines(tmp_path)[0]["message"] == "file 7"


def test_only_its_owner_may_look_into_the_log_folder(tmp_path):
    configure_logging(tmp_path / "home", secrets=[])
    assert (tmp_path / "home" / "logs").stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_made_is_a_sentence_without_its_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOptionError, match=r"Set DYNQUANT_HOME") as caught:
        configure_logging(tmp_path / "file", secrets=[])
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"the token {TOKEN} is refused", "the token [redacted] is refused"),
        ("hf_oauth_eyJ0.eyJz-dW_Ii.x is over", "[redacted] is over"),
        ("api_org_AbCdEfGhIjKl", "[redacted]"),
        ("{'Authorization': 'Bearer abc.def-123'}", "{'Authorization': 'Bearer [redacted]'}"),
        ("authorization: basic dXNlcjpwdw==", "authorization: basic [redacted]"),
        ("postgresql://u:pw@db:5432/jobs", "postgresql://u:[redacted]@db:5432/jobs"),
        ("postgresql://u:p@s:s/w@db/jobs and", "postgresql://u:[redacted]@db/jobs and"),
        ("host=db password=pw user=u", "host=db password=[redacted] user=u"),
        ("https://cdn/x?Signature=ab%2F&Expires=5", "https://cdn/x?Signature=[redacted]&Expires=5"),
        ("url: /services/T0/B0/xyz (", "url: /services/T[redacted] ("),
        ("https://discord.com/api/webhooks/1/x-y", "https://discord.com/api/webhooks/[redacted]"),
    ],
)
def test_what_looks_like_a_secret_is_redacted(text, shown):
    assert Redactor()(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub_download of hf_transfer in huggingface_hub",
        "a basic example, 16384 tokens=5, https://huggingface.co/org/Model",
        "https://host:8080/path",
        "bearer of bad news",
    ],
)
def test_what_is_no_secret_stays(text):
    assert Redactor(["", "ab"])(text) == text


def test_a_url_among_the_secrets_hides_its_password_and_not_its_host():
    redact = Redactor(["postgresql://me:s%40cret-word@db.example/jobs"])
    assert redact("s@cret-word and s%40cret-word at db.example") == (
        "[redacted] and [redacted] at db.example"
    )


class Shown:
    """Shows the secret by its `repr` alone."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def __repr__(self) -> str:
        return f"<{self._secret}>"


def log_everywhere(secret: str) -> None:
    """Log `secret` in every part of a record that a text can be in."""
    logger.info("A %s", secret)
    logger.info("plain " + secret)  # noqa: G003  what a careless caller would write
    logger.info("%(key)s", {"key": {"nested": [secret]}})
    logger.info("%r %s", Shown(secret), json.dumps({"key": secret}))
    logger.info("https://example.org/?key=%s", quote(secret, safe=""))
    logger.info("%d", secret)
    logger.info("in extra", extra={"job_id": secret})
    logging.getLogger("lib").warning("Headers: %s", {"x-key": secret.encode()})
    with job_context(secret, secret):
        logger.info("in context")
    try:
        try:
            fail(KeyError(secret))
        except KeyError:
            fail(RuntimeError(f"after {secret}"))
    except RuntimeError:
        logger.exception("failed")


def canaries() -> st.SearchStrategy[str]:
    printable = st.characters(min_codepoint=33, max_codepoint=126)
    return st.text(printable, min_size=12, max_size=40)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(canary=canaries())
@pytest.mark.harden("secrets")
def test_no_known_secret_survives_wherever_it_stands(tmp_path, canary):
    assert_gone(tmp_path, canary, secrets=[canary], hidden=canary)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(canary=st.text("abcXYZ0189", min_size=9, max_size=40))
def test_no_token_of_the_hub_survives_that_nobody_named(tmp_path, canary):
    assert_gone(tmp_path, f"hf_{canary}", secrets=[], hidden=canary)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(canary=canaries())
def test_no_password_of_a_url_survives_that_nobody_named(tmp_path, canary):
    url = f"postgresql://user:{canary}@host:5432/jobs"
    configure_logging(tmp_path, secrets=[])
    (tmp_path / LOG_FILE).write_text("")
    logger.info("It is %s.", url)
    assert "@host:5432/jobs." in lines(tmp_path)[0]["message"]
    assert canary not in lines(tmp_path)[0]["message"]


def assert_gone(home: Path, secret: str, *, secrets: list[str], hidden: str) -> None:
    terminal = Terminal()
    with contextlib.redirect_stderr(terminal):
        configure_logging(home, secrets=secrets)
        (home / LOG_FILE).write_text("")
        log_everywhere(secret)
    written = lines(home)
    assert len(written) == len(terminal.getvalue().splitlines()) == 10
    assert hidden not in terminal.getvalue()
    for line in written:
        for text in line.values():
            assert quote(hidden, safe="") not in text
            assert hidden not in text
            assert json.dumps(hidden)[1:-1] not in text
            assert repr(hidden)[1:-1] not in text


@pytest.mark.parametrize("verbose", [False, True])
def test_a_command_logs_lines_to_the_terminal_and_tracebacks_only_on_request(verbose):
    terminal = Terminal()
    with contextlib.redirect_stderr(terminal):
        log_to_terminal(secrets=[TOKEN], verbose=verbose)
        logger.info("a detail")
        try:
            fail(ValueError(f"two\nlines {TOKEN}"))
        except ValueError:
            logger.exception("It failed")
    said = terminal.getvalue()
    assert "ERROR   It failed (ValueError: two lines [redacted])" in said
    assert TOKEN not in said
    assert ("a detail" in said, "Traceback" in said) == (verbose, verbose)
    assert (said.count("\n") == 1) is not verbose


def test_the_secrets_of_an_environment_are_its_tokens_and_urls_with_passwords():
    environment = {
        "HF_TOKEN": "hf_a",
        "DYNQUANT_SPACE_SECRET": "b",
        "DYNQUANT_WEBHOOK_SECRET": " ",
        "DYNQUANT_DATABASE_URL": "postgresql://u:c@host/d",
        "DYNQUANT_HOME": "/e",
    }
    assert secrets_in(environment) == ["hf_a", "b", "postgresql://u:c@host/d"]
    assert secrets_in({"DYNQUANT_DATABASE_URL": "sqlite:////f"}) == []
