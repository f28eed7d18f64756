"""Markdown whose structure untrusted text cannot change.

Every character of a text that may have a meaning in Markdown or HTML is written as a numeric
character reference, which is never structure in CommonMark (section 2.5).
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable, Sequence

__all__ = ["DASH", "clean", "code", "escape", "fenced", "folded", "link", "table"]

DASH = "–"
"""Shown for a missing figure or text."""

# Characters with a meaning within a line; a colon only where it could make a link.
_STRUCTURAL = re.compile(r"[!\"#$&*<>@\[\\\]^_`{|}~]|:(?! |$)")
_LINE_START = re.compile(r"^(?:()([-+=])|(\d{1,9})([.)])(?= |$))")
_BARE_WWW = re.compile(r"(www)\.", re.IGNORECASE)
_PLAIN_CODE = re.compile(r"[\w./:@=+,\-]+( [\w./:@=+,\-]+)*", re.ASCII)
_HTTP_URL = re.compile(r"https?://[\w.\-]+(:\d+)?(/[\w./%~+=&?#:,@\-]*)?", re.ASCII)


def clean(text: str) -> str:
    """`text` on one line, without control, invisible or unassigned characters."""
    visible = (" " if unicodedata.category(char)[0] in "CZ" else char for char in text)
    return " ".join("".join(visible).split())


def escape(text: str) -> str:
    """`text` as plain words, without markup, links, line starts or table cells."""
    escaped = _STRUCTURAL.sub(lambda found: _reference(found[0]), clean(text))
    escaped = _LINE_START.sub(_without_start, escaped)
    return _BARE_WWW.sub(r"\1&#46;", escaped)


def code(text: str) -> str:
    """`text` as a code span, also within a table."""
    words = clean(text)
    if not words:
        return DASH
    return f"`{words}`" if _PLAIN_CODE.fullmatch(words) else f"<code>{escape(words)}</code>"


def link(text: str, url: str) -> str:
    """A link when `url` is a plain web address; otherwise `text` alone."""
    return f"[{escape(text)}]({url})" if _HTTP_URL.fullmatch(url) else escape(text)


def fenced(lines: Iterable[str], language: str) -> str:
    """A block of code that its lines cannot end early."""
    # Character by character, since `clean` would join spaces, which may stand within quotes.
    body = "\n".join("".join(clean(char) or " " for char in line) for line in lines)
    if any(mark in body for mark in "<`"):
        return f"<pre><code>{html.escape(body, quote=False)}</code></pre>"
    return f"```{language}\n{body}\n```"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, align: str) -> str:
    """A table of cells that are Markdown already.

    Args:
        header: One cell per column.
        rows: As many cells each.
        align: One letter per column: `l` or `r`.
    """
    rule = ["---:" if side == "r" else "---" for side in align]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def folded(summary: str, content: str) -> str:
    """`content` that opens on a click on `summary`."""
    return f"<details>\n<summary>{escape(summary)}</summary>\n\n{content}\n\n</details>"


def _without_start(found: re.Match[str]) -> str:
    return (found[1] or found[3] or "") + _reference(found[2] or found[4])


def _reference(char: str) -> str:
    return f"&#{ord(char)};"
