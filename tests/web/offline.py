"""The pages with everything behind them and without a network: `python -m tests.web.offline`.

A local Hub has a small model and two texts under the names of the default ones; the texts are
Python's own help. The pages run as a person starts them, with a runner beside them.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from dynquant.jobs.served import announced
from dynquant.settings import Settings
from local_hub import LocalHub
from local_hub.texts import add_default_texts
from tests.web.children import ROOT, running

SAMPLE = ROOT / "examples" / "sample-2m"
SOURCE = "team/sample-2m"
USER, TOKEN = "you", "hf_local"
FOLDER = ROOT / "out" / "serve"
"""Kept, so that what was made is there the next time."""

_CARD = b"""---
license: mit
library_name: transformers
pipeline_tag: text-generation
---
# sample-2m
"""


def main() -> int:
    """Serve until Ctrl-C, or until this process is ended."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, signal.default_int_handler)
    FOLDER.mkdir(parents=True, exist_ok=True)
    try:
        with (
            offline_hub(FOLDER / "hub") as hub,
            announced(_queue(environment(hub, FOLDER)), home=_home_of_commands()),
            running([sys.executable, "app.py"], environment(hub, FOLDER)) as process,
        ):
            _say(f"On this machine alone: a Hub at {hub.url}, with the model {SOURCE} on it.")
            return process.wait()
    except KeyboardInterrupt:
        return 0
    except sqlite3.OperationalError:
        _say("These pages run already: stop them first.")
        return 1


def _queue(variables: Mapping[str, str]) -> str:
    return Settings.from_environment(variables).database_url


def _home_of_commands() -> Path:
    """The home of commands that are typed in another terminal."""
    return Settings.from_environment({}).home


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


@contextmanager
def offline_hub(
    folder: Path | None = None, *, num_documents: int | None = None
) -> Iterator[LocalHub]:
    """A Hub with all that a conversion needs.

    Args:
        folder: Where it keeps everything to go on with later; None for nowhere.
        num_documents: Of either text; all if None.
    """
    with LocalHub(folder, clock=lambda: datetime.now(UTC)) as hub:
        hub.add_user(USER, token=TOKEN)
        if ("model", SOURCE) not in hub.repos:
            _fill(hub, num_documents)
        hub.after_request = lambda _: hub.requests.clear()
        yield hub


def _fill(hub: LocalHub, num_documents: int | None) -> None:
    files = {file.name: file for file in SAMPLE.iterdir() if file.is_file()}
    hub.add(SOURCE, {**files, "README.md": _CARD}, downloads=1)
    add_default_texts(hub, num_documents=num_documents)


def environment(hub: LocalHub, folder: Path, **extra: str) -> dict[str, str]:
    """Variables under which the commands use `hub`, and keep what they keep in `folder`.

    Settings of this shell for the real Hub, or for another queue, do not come through.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DYNQUANT_", "HF_", "HUGGING_FACE_", "HUGGINGFACE_"))
    }
    own = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    not_proxied = ",".join(filter(None, (own, "127.0.0.1", "localhost")))
    return kept | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(folder / "hf"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": not_proxied,
        "no_proxy": not_proxied,
        "DYNQUANT_HOME": str(folder / "home"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        **extra,
    }


if __name__ == "__main__":
    sys.exit(main())
