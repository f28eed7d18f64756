"""Serve a local Hub until Ctrl-C or SIGTERM: `python -m local_hub [--folder DIR] [--port N]`.

The first line on stdout is its URL, the second how to log in with a browser.
"""

from __future__ import annotations

import argparse
import os
import signal
import sqlite3
import sys
from datetime import UTC, datetime
from pathlib import Path

from local_hub.hub import LocalHub

USER, TOKEN, ORG = "you", "hf_local", "team"
LARGEST_PORT = 65535


def main() -> None:
    options = _options()
    try:
        hub = LocalHub(options.folder, port=options.port, clock=lambda: datetime.now(UTC))
    except sqlite3.OperationalError:
        sys.exit("Another local hub has this folder open: stop it, or name another folder.")
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        sys.exit(f"No local hub here ({reason}): choose another --port or --folder.")
    # Blocked before the server's thread starts, so that a signal waits for the main thread.
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with hub:
        hub.add_user(USER, token=TOKEN, orgs={ORG: "write"})
        # The list of requests is for tests; here it would grow for days.
        hub.after_request = lambda _: hub.requests.clear()
        _say(hub.url)
        _say("To use it from another shell, where it speaks no Xet:")
        _say(f"export HF_ENDPOINT={hub.url} HF_TOKEN={TOKEN} HF_HUB_DISABLE_XET=1")
        _say(f"To see private repos in a browser, open {hub.url}/login?token={TOKEN}")
        signal.sigwait(ends)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m local_hub", description="A stand-in for the Hugging Face Hub."
    )
    parser.add_argument("--folder", type=Path, help="keep everything there, to go on later")
    parser.add_argument("--port", type=int, default=0, help="0 for any that is free")
    options = parser.parse_args()
    if not 0 <= options.port <= LARGEST_PORT:
        parser.error(f"--port is a number from 0 to {LARGEST_PORT}.")
    return options


if __name__ == "__main__":
    main()
