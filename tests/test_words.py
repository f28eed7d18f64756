"""The lint of prose finds the patterns that it names, and lets questions and code pass."""

from __future__ import annotations

import pytest

from scripts.words import found


@pytest.mark.parametrize(
    "text",
    [
        "Who asks on a machine itself is local.",
        "It is refused. Nobody is told.",
        "The repo stays for whoever comes next.",
        "What the layers\nneed is read.",
    ],
)
def test_a_clause_as_subject_is_found_in_markdown_comments_and_strings(text):
    assert found("a.md", text)
    assert found("a.py", f'"""{text}"""\n')
    assert found("a.py", "".join(f"# {line}\n" for line in text.split("\n")))


@pytest.mark.parametrize("text", ["What is MLX?", "The visitor signs in.", "See `WhatsNew`."])
def test_questions_and_plain_sentences_pass(text):
    assert found("a.md", text) == []


def test_names_in_code_are_not_prose():
    assert found("a.py", "Nobody = What = 1\n") == []


def test_the_line_of_a_hit_is_told():
    (hit,) = found("a.py", 'x = 1\n"""One.\n\nNobody reads.\n"""\n')
    assert hit.startswith("a.py:4:")
