"""Find the worst patterns of prose: `python -m scripts.words`, part of `make lint`.

Looks at comments and strings of Python files and at Markdown. A question may begin with "What".
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROSE = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
SUBJECT = r"\b(?:Who|What|Whoever|Nobody)\b(?![^.!:|]*\?)"
BANNED = (
    r"whoever|passe[ds] for|in so many words|one or none|what no \w+ needs|needs nobody"
    r"|(?:for|by) who\b(?!m)|asked of a|told so|runs them so|leads its name|stands? in for it"
)
PATTERN = re.compile(rf"{SUBJECT}|\b(?:{BANNED})\b")
IGNORED = re.compile(r"^(?:\.|build/|dist/|out/|venv/|scripts/words.py|tests/test_words.py)")


def prose(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each comment and string, or of a whole Markdown file."""
    if not path.endswith(".py"):
        yield 1, text
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in PROSE:
            yield token.start[0], token.string


def found(path: str, text: str) -> list[str]:
    """A message for each pattern in a file."""
    return [
        f"{path}:{line + part.count(chr(10), 0, hit.start())}: say it plainly: '{hit[0]} …'"
        for line, part in prose(path, text)
        for hit in PATTERN.finditer(part)
    ]


def main() -> int:
    """Print what is found in the repository's files; the exit code."""
    paths = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.suffix in {".py", ".md"})
    named = [path.as_posix() for path in sorted(paths) if not IGNORED.search(path.as_posix())]
    hits = [hit for path in named for hit in found(path, (ROOT / path).read_text("utf-8"))]
    print(*hits, sep="\n", end="\n" if hits else "")
    return 1 if hits else 0


if __name__ == "__main__":
    sys.exit(main())
