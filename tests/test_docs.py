"""Every command and option of the command line is in the documentation."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import typer

from dynquant.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (ROOT / "docs" / "cli.md", ROOT / "README.md") if path.is_file()]


def commands(group: Any, prefix: str = "") -> dict[str, Any]:
    """Name as it is typed → command, those of groups within groups too."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            found |= commands(command, f"{prefix}{name} ")
        else:
            found[prefix + name] = command
    return found


COMMANDS = commands(typer.main.get_command(app))


def documentation() -> str:
    assert PAGES, "there is neither docs/cli.md nor README.md"
    return "\n".join(path.read_text(encoding="utf-8") for path in PAGES)


def section(command: str) -> str:
    """The part of docs/cli.md whose heading names the command."""
    parts = re.split(r"^(##+ .*)$", documentation(), flags=re.MULTILINE)
    for heading, text in zip(parts[1::2], parts[2::2], strict=True):
        if re.search(rf"\bdynquant {command}\b", heading):
            return heading + text
    pytest.fail(f"docs/cli.md has no heading with 'dynquant {command}'")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_option_of_a_command_is_in_its_section(command):
    text = section(command)
    options = {
        name
        for parameter in COMMANDS[command].params
        for name in (*parameter.opts, *parameter.secondary_opts)
        if name.startswith("--") and name != "--help"
    }
    documented = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text))
    assert sorted(options - documented) == [], f"missing in the section of 'dynquant {command}'"
    unknown = documented - options - {"--help"}
    assert sorted(unknown) == [], f"'dynquant {command}' has no such options"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_and_option_says_what_it_does(command):
    assert COMMANDS[command].help
    for parameter in COMMANDS[command].params:
        assert getattr(parameter, "help", None), f"{command} {parameter.name} has no help"


SECURITY = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(tests/[\w/.]+::\w+)`", SECURITY))))
def test_every_test_that_the_threat_model_names_is_run_by_make_harden(name):
    path, _, function = name.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    defined = [each for each in tree.body if getattr(each, "name", "") == function]
    marks = [ast.unparse(mark) for each in defined for mark in vars(each)["decorator_list"]]
    marks += [line for each in tree.body if "pytestmark" in (line := ast.unparse(each))]
    assert any("pytest.mark.harden(" in mark for mark in marks), marks


def test_the_threat_model_names_a_test_for_every_defence():
    rows = re.findall(r"^\|(?! *\|)(?!.*---)(.*)\|$", SECURITY, flags=re.MULTILINE)
    defences = [row for row in rows if len(row.split("|")) == 3 and "shown by" not in row]
    assert len(defences) > 20
    assert [row for row in defences if "::test_" not in row and "yes" not in row] == []
