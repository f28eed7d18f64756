"""The pages at http://127.0.0.1:7860 with a runner beside them: `python -m scripts.serve [HUB]`.

HUB is `huggingface`, or `local` for a Hub of this machine alone, on which a small model waits to
be converted. Without it the first is taken where this machine has a token, which publishing needs.
"""

from __future__ import annotations

import sys

from huggingface_hub import get_token

import app
from tests.web import offline

_HUBS = ("huggingface", "local")


def main() -> int:
    """Serve until Ctrl-C."""
    hub = sys.argv[1] if len(sys.argv) > 1 else ""
    if hub not in {"", *_HUBS}:
        sys.exit(f"HUB is one of: {', '.join(_HUBS)}.")
    if hub == "local":
        return offline.main()
    if not hub and get_token() is None:
        print(
            "This machine has no token for the Hugging Face Hub, so a Hub of its own stands in "
            "for it.\nFor the real one: 'hf auth login', or only to look, 'make serve "
            "HUB=huggingface'.",
            flush=True,
        )
        return offline.main()
    app.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
