"""Write requirements.txt, what a Space installs, from pyproject.toml.

A Space runs `pip install -r requirements.txt` before it copies the repository, so the file can
name neither `-e .` nor another file. It adds Gradio itself, at the `sdk_version` of README.md,
and shares packages with Gradio, so here are ranges and not the lock.
"""

import argparse
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "requirements.txt"
HEADER = """\
# What a Space installs. Written by scripts/space_requirements.py from pyproject.toml.
# Gradio is missing on purpose: the Space installs it, at the sdk_version of README.md.
"""


def render() -> str:
    """Return the text of requirements.txt: the core's dependencies and those of `mlx`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["mlx"]]
    return HEADER + "".join(f"{line}\n" for line in sorted(lines))


def main() -> int:
    """Write the file, or with `--check` say whether it is current."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    check = parser.parse_args().check
    text = render()
    if check:
        if TARGET.read_text(encoding="utf-8") == text:
            return 0
        print("requirements.txt is stale: run scripts/space_requirements.py", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
