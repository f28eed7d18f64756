"""`python -m dynquant.sandbox TERMS COMMAND…`: give up what can be given up, then run COMMAND."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys

from dynquant.sandbox import MARK, linux


def main() -> None:
    """Does not return."""
    terms, command = json.loads(sys.argv[1]), sys.argv[2:]
    os.environ[MARK] = "1"
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no weights, no texts in a crash's dump
    if sys.platform == "linux":
        linux.give_up(**terms)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main()
