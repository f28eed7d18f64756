"""No test rests on a clock: neither by what it asserts nor by waiting a fixed time."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import waiting
from tests.waiting import wait_until

TESTS = Path(__file__).parent
CLOCKS = frozenset(
    {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "thread_time"}
)
SLEEPS_ON_PURPOSE = {
    "jobs/test_chaos.py": "a database is away for 25 s",
    "hub/test_inbox.py": "the Hub client's own pauses, shortened",
    "runner/test_child_process.py": "a flood is held up once nothing is written for a moment",
    "service/test_real_jobs.py": "a runner is killed at a random moment",
}


def clock_asserts(source: str) -> Iterator[int]:
    """Lines of asserts on what a clock said, directly or by a name."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            names = {
                target.id
                for node in ast.walk(function)
                if isinstance(node, ast.Assign) and _reads_clock(node.value, set())
                for target in node.targets
                if isinstance(target, ast.Name)
            }
            for node in ast.walk(function):
                if isinstance(node, ast.Assert) and _reads_clock(node.test, names):
                    yield node.lineno


def fixed_sleeps(source: str) -> Iterator[int]:
    """Lines that call `time.sleep` or `asyncio.sleep`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"time.sleep", "asyncio.sleep"}:
            yield node.lineno


def _reads_clock(expression: ast.AST, names: set[str]) -> bool:
    return any(
        (isinstance(node, ast.Attribute) and node.attr in CLOCKS)
        or (isinstance(node, ast.Name) and node.id in CLOCKS | names)
        for node in ast.walk(expression)
    )


def test_the_search_finds_asserts_on_clocks_and_sleeps():
    source = (
        "def test_a():\n"
        "    began = time.perf_counter()\n"
        "    assert time.perf_counter() - began < 2\n"
        "def test_b():\n"
        "    secs = perf_counter() - 1\n"
        "    time.sleep(1)\n"
        "    assert 0 < secs\n"
        "def test_c():\n"
        "    report(time.monotonic())\n"
        "    assert secs\n"
    )
    assert list(clock_asserts(source)) == [3, 7]
    assert list(fixed_sleeps(source)) == [6]


def test_no_test_asserts_a_time():
    found = {
        f"{path.relative_to(TESTS)}:{line}"
        for path in TESTS.rglob("*.py")
        for line in clock_asserts(path.read_text(encoding="utf-8"))
    }
    assert found == set()


def test_no_test_waits_a_fixed_time():
    found = {
        path.relative_to(TESTS).as_posix()
        for path in (*TESTS.rglob("test_*.py"), *TESTS.rglob("conftest.py"))
        if any(fixed_sleeps(path.read_text(encoding="utf-8")))
    }
    assert found == set(SLEEPS_ON_PURPOSE)


def test_a_wait_returns_what_happened():
    answers = iter(["", "", "there"])
    assert wait_until(lambda: next(answers)) == "there"


def test_a_wait_in_vain_says_for_what(monkeypatch):
    monkeypatch.setattr(waiting, "PATIENCE_SECS", 0.0)
    with pytest.raises(AssertionError, match="waited in vain for rain"):
        wait_until(lambda: False, "rain")
