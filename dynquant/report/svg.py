"""Shared parts of a card's plots: colours, frame, and escaped text."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass

from dynquant.texts.markdown import clean

__all__ = [
    "DARK",
    "LIGHT",
    "MARGIN",
    "MONOSPACED",
    "WIDTH",
    "Theme",
    "escaped",
    "opening",
    "shortened",
    "small_text",
    "trimmed",
]

MONOSPACED = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"
_SANS = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"

# Lengths are in CSS pixels; a model card on the Hub is about 900 wide.
WIDTH = 900
MARGIN = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """The colours of a light or a dark page.

    Attributes:
        empty: A place without a value.
        accent: The subject of the picture.
        bits: Colours of ascending bits per weight.
    """

    background: str
    border: str
    text: str
    muted: str
    empty: str
    accent: str
    bits: tuple[str, ...]


# Brightness alone orders the bits, so they read without telling hues apart; the most bits
# stand out most from the background.
LIGHT = Theme(
    background="#ffffff",
    border="#e5e7eb",
    text="#111827",
    muted="#6b7280",
    empty="#f3f4f6",
    accent="#2f69b3",
    bits=("#fbf1b5", "#efdb7d", "#8ccf97", "#37a3bf", "#2f69b3", "#2d3a90", "#12143f"),
)
DARK = Theme(
    background="#0f1420",
    border="#273043",
    text="#f3f4f6",
    muted="#9aa4b5",
    empty="#1a2130",
    accent="#5fb0e8",
    bits=("#46307a", "#3f4cab", "#2a82bd", "#2fb68d", "#9ad04d", "#f2d94e", "#fff8d8"),
)


def opening(
    theme: Theme, height: float, *, title: str, description: str, heading: str, subtitle: str
) -> Iterator[str]:
    """The start of the picture: size, description for screen readers, frame, heading.

    Args:
        theme: The colours.
        height: Height of the picture.
        title: Name of the picture, for screen readers.
        description: Content of the picture, for screen readers.
        heading: Shown in bold.
        subtitle: Shown below it.
    """
    tall = trimmed(height)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{tall}" '
        f'viewBox="0 0 {WIDTH} {tall}" role="img" aria-labelledby="title desc" '
        f'font-family="{_SANS}">'
    )
    yield f'<title id="title">{escaped(title)}</title>'
    yield f'<desc id="desc">{escaped(description)}</desc>'
    yield (
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{trimmed(height - 1)}" rx="10" '
        f'fill="{theme.background}" stroke="{theme.border}"/>'
    )
    yield (
        f'<text x="{MARGIN}" y="34" font-size="17" font-weight="600" fill="{theme.text}">'
        f"{escaped(heading)}</text>"
    )
    yield (
        f'<text x="{MARGIN}" y="54" font-size="13" fill="{theme.muted}">{escaped(subtitle)}</text>'
    )


def small_text(theme: Theme, words: str, *, x: float, y: float, anchor: str = "start") -> str:
    """A muted line beside the data, such as a label of an axis."""
    return (
        f'<text x="{trimmed(x)}" y="{trimmed(y)}" font-size="11" text-anchor="{anchor}" '
        f'fill="{theme.muted}">{escaped(words)}</text>'
    )


def trimmed(value: float) -> str:
    """`value` to two decimals, without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def shortened(words: str, max_chars: int) -> str:
    """`words` on one line, with the middle left out where they are too long."""
    line = clean(words)
    if len(line) <= max_chars:
        return line
    tail = max_chars // 2
    return f"{line[: max_chars - tail - 1]}…{line[-tail:]}"


def escaped(words: str) -> str:
    """`words` as the content of an element or an attribute."""
    return html.escape(clean(words))
