"""The help of every command, and the completion of words."""

from __future__ import annotations

import re
import shlex

import click
import pytest
import typer

from dynquant.cli.app import app
from dynquant.cli.examples import EXAMPLES
from tests.command_line import call
from tests.test_docs import COMMANDS

ROOT = typer.main.get_command(app)
GROUPS = {"": ROOT, "watch": ROOT.commands["watch"], "jobs": ROOT.commands["jobs"]}  # type: ignore[attr-defined]


def help_of(command: str, width: int = 100) -> str:
    found = {**COMMANDS, **GROUPS}[command]
    context = click.Context(found, info_name=f"dynquant {command}", terminal_width=width)
    text: str = found.get_help(context)
    return text


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_an_option_that_takes_a_value_says_what_is_meant(command):
    for parameter in COMMANDS[command].params:
        if getattr(parameter, "is_flag", False):
            continue
        assert parameter.metavar, f"{command} {parameter.name} shows only a type"
        assert parameter.metavar.upper() not in {"TEXT", "STR", "INT", "PATH"} or (
            parameter.name in {"calibration", "evaluation"}
        )


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_a_help_is_whole(command):
    assert "…" not in help_of(command)
    cut = re.sub(r"\[,\w+\.\.\.\]|\[ARGS\]\.\.\.", "", help_of(command))
    assert "..." not in cut


@pytest.mark.parametrize("group", sorted(GROUPS))
def test_no_line_of_a_list_of_commands_is_cut_in_a_narrow_terminal(group):
    listed = help_of(group, 80).split("Commands:")[1]
    assert "..." not in listed


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line in lines])
def test_an_example_is_a_command_that_can_be_typed(line):
    command = next(name for name, lines in EXAMPLES.items() if line in lines)
    words = shlex.split(line)
    assert words[: 1 + len(command.split())] == ["dynquant", *command.split()]
    found = {**COMMANDS, **GROUPS}[command]
    found.make_context(command, words[1 + len(command.split()) :])
    assert line in help_of(command)


def test_the_commands_of_daily_use_have_examples():
    assert {"plan", "measure", "quantize", "evaluate", "convert", "publish", "submit"} <= {
        *EXAMPLES
    }


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("dynquant qu", "quantize"), ("dynquant jobs re", "retry"), ("dynquant plan --fi", "--fit")],
)
def test_a_shell_completes_commands_and_options(monkeypatch, typed, offered):
    monkeypatch.setenv("_DYNQUANT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert re.findall(r"^\S+", call().out, re.MULTILINE) == [offered]
