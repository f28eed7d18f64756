"""Settings, databases and final summaries of the whole session."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator

import hypothesis
import pytest

# How long an example takes says nothing on cores that others use too.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share few cores, where threads of OpenBLAS mostly wait for each other.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# The tests neither read nor write dynquant's own home on this machine.
os.environ["DYNQUANT_HOME"] = tempfile.mkdtemp(prefix="dynquant-home-")
atexit.register(shutil.rmtree, os.environ["DYNQUANT_HOME"], ignore_errors=True)

import dynquant.quant.mlx  # noqa: E402, F401  OpenBLAS before any test imports MLX
from tests import hardening  # noqa: E402
from tests.postgres import PostgresServer, postgres_server  # noqa: E402


@pytest.fixture(autouse=True)
def _row_of_the_hardening_table(request, record_property) -> None:
    marker = request.node.get_closest_marker("harden")
    if marker is not None:
        record_property(hardening.ROW, marker.args[0])


@pytest.fixture
def harden(request, record_property) -> Callable[..., None]:
    """Says how a case of a test that is marked `harden` ended; see `tests.hardening`."""
    row = request.node.get_closest_marker("harden").args[0]

    def ended(outcome: str, count: int = 1) -> None:
        assert outcome in hardening.OUTCOMES
        record_property(hardening.ROW, f"{row}|{outcome}|{count}")

    return ended


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print measurements of tests, and the model families by outcome."""
    hardened = hardening.tally(
        (report.passed, report.user_properties)
        for outcome in ("passed", "failed", "error")
        for report in terminalreporter.getreports(outcome)
        if isinstance(report, pytest.TestReport) and (report.when == "call" or report.failed)
    )
    if hardened:
        hardening.write_table(hardened, terminalreporter)
    measured = [
        value
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
        for name, value in report.user_properties
        if name == "chaos"
    ]
    if measured:
        terminalreporter.section("chaos")
        for line in measured:
            terminalreporter.write_line(str(line))
    ran = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call" and "test_families.py::test_a_family_is_quantized" in report.nodeid
    ]
    if not ran:
        return
    from tests import families

    passed = [report for report in ran if report.passed]
    methods = Counter(dict(report.user_properties)["method"] for report in passed)
    say = terminalreporter.write_line
    terminalreporter.section("model families")
    say(
        f"{len(passed)} of {len(ran)} families run were quantized ("
        + ", ".join(f"{count} by {method}" for method, count in sorted(methods.items()))
        + f"); the table has {len(families.FAMILIES)}, for "
        f"{len(families.all_model_modules()) - len(families.EXCLUDED)} of "
        f"{len(families.all_model_modules())} modules of mlx_lm.models"
    )
    for title, notes in (
        ("no family", families.EXCLUDED),
        ("refused", families.REFUSED),
        ("no gradient", families.NO_GRADIENT),
        ("not block by block", families.WHOLE),
        ("masked logits", families.MASKED_LOGITS),
        ("mlx_lm.load fails, load_model works", families.STOCK_CANNOT_RELOAD),
    ):
        for name, reason in notes.items():
            say(f"{title}: {name}: {reason}")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request, tmp_path) -> str:
    """A new database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    return request.getfixturevalue("postgres").new_database()
