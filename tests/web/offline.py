"""The pages with everything behind them and without a network: `python -m tests.web.offline`.

A local Hub has a small model and two texts under the names of the default ones; the texts are
Python's own help. The pages run as a person starts them, with a runner beside them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.local_hub import LocalHub
from tests.local_hub.texts import add_default_texts

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "examples" / "sample-2m"
SOURCE = "team/sample-2m"
USER, TOKEN = "you", "hf_local"


def main() -> int:
    """Serve until Ctrl-C."""
    with offline_hub() as hub:
        sys.stdout.write(f"A Hub of this machine alone: {hub.url}. On it is {SOURCE}.\n")
        sys.stdout.flush()
        folder = ROOT / "out" / "serve"
        folder.mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=ROOT, env=environment(hub, folder)
        )
        try:
            return process.wait()
        except KeyboardInterrupt:  # which the pages have got as well
            return process.wait()


@contextmanager
def offline_hub() -> Iterator[LocalHub]:
    """A Hub with all that a conversion needs."""
    with LocalHub() as hub:
        hub.add_user(USER, token=TOKEN)
        hub.add(SOURCE, SAMPLE)
        add_default_texts(hub)
        hub.after_request = lambda _: hub.requests.clear()
        yield hub


def environment(hub: LocalHub, folder: Path, **extra: str) -> dict[str, str]:
    """What the pages and their runner have to know of `hub`."""
    return os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "DYNQUANT_HOME": str(folder / "home"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        **extra,
    }


if __name__ == "__main__":
    sys.exit(main())
