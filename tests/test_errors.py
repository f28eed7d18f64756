from __future__ import annotations

import errno
import re

import pytest

from dynquant import errors
from dynquant.errors import RequestError, disk_errors_translated

TREE = re.compile(r"^ {4}(?P<indent>[│ ├└─]*)(?P<name>\w+Error)\b(?P<rest>.*)$", re.MULTILINE)
CODE = re.compile(r"exit code (\d)")


def documented() -> dict[str, tuple[str | None, int]]:
    """Name → (parent, exit code) as the tree in the docstring shows them."""
    found: dict[str, tuple[str | None, int]] = {}
    above: list[tuple[int, str, int]] = []  # depth, name, exit code
    assert errors.__doc__ is not None
    for match in TREE.finditer(errors.__doc__):
        depth = len(match["indent"]) // 4
        above = [each for each in above if each[0] < depth]
        code = CODE.search(match["rest"])
        exit_code = int(code[1]) if code else above[-1][2] if above else 1
        found[match["name"]] = (above[-1][1] if above else None, exit_code)
        above.append((depth, match["name"], exit_code))
    return found


NAMES = [name for name in errors.__all__ if name.endswith("Error")]


def test_the_exported_names_are_those_of_the_documented_tree():
    assert sorted(documented()) == NAMES
    helpers = {
        "Reason",
        "disk_errors_translated",
        "means_full_disk",
        "means_no_memory",
        "missing_driver",
    }
    assert set(errors.__all__) - set(NAMES) == helpers


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_no_more_is_our_error_and_other_trouble_stays_what_it_is(number):
    with pytest.raises(errors.StorageFullError, match="disk is full"), disk_errors_translated():
        raise OSError(number, "no")
    with pytest.raises(FileNotFoundError), disk_errors_translated():
        raise FileNotFoundError(errno.ENOENT, "no")


@pytest.mark.parametrize("name", NAMES)
def test_every_error_has_the_parent_and_the_exit_code_that_the_tree_gives_it(name):
    error = getattr(errors, name)
    parent, exit_code = documented()[name]
    assert error.__base__.__name__ == (parent or "Exception")
    assert error.exit_code == exit_code
    assert error.__doc__


@pytest.mark.parametrize(
    ("error", "data"),
    [
        (errors.InfeasibleTargetError("no", min_bpw=2.5, max_bpw=16.0), ("min_bpw", "max_bpw")),
        (errors.TextError("no", num_tokens_needed=5), ("num_tokens_needed",)),
        (errors.NonFiniteError("no", layer="a.b"), ("layer",)),
        (errors.NotEnoughMemoryError("no", needed_bytes=5), ("needed_bytes",)),
    ],
)
def test_errors_carry_the_data_that_the_tree_names(error, data):
    assert str(error) == "no"
    assert errors.__doc__ is not None
    for name in data:
        assert getattr(error, name) is not None
        assert f"`{name}`" in errors.__doc__


def test_a_text_error_needs_no_number():
    assert errors.TextError("no").num_tokens_needed is None


@pytest.mark.parametrize("name", NAMES)
def test_every_error_has_a_reason_of_its_own(name):
    error = getattr(errors, name)
    others = [getattr(errors, other) for other in NAMES if other != name]
    assert error.default_reason in errors.Reason
    if name != "DynquantError":
        assert error.default_reason not in {other.default_reason for other in others}


def test_a_reason_that_is_given_wins_over_that_of_the_class():
    assert errors.UnsupportedModelError("no").reason == "unsupported_model"
    error = errors.UnsupportedModelError("no", reason=errors.Reason.GGUF)
    assert error.reason == "gguf"


@pytest.mark.harden("hostile models")
def test_what_a_stranger_named_cannot_take_over_a_terminal_or_break_a_database():
    error = RequestError("There is no '\x1b[2J\u202e\n\0\ud800é' here. Pass another.")
    sentence = str(error)
    assert sentence.isprintable()
    assert sentence.encode()
    assert sentence.startswith("There is no '")
    assert sentence.endswith("é' here. Pass another.")


def test_a_long_name_leaves_the_beginning_and_the_end_of_a_sentence():
    sentence = str(RequestError(f"There is no '{'x' * 10**6}' here. Pass another."))
    assert len(sentence) < 2500
    assert sentence.startswith("There is no 'xxx")
    assert sentence.endswith("xxx' here. Pass another.")
