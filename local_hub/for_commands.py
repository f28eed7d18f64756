"""A local Hub for commands that run in this process: `with hub_for_commands(folder) as hub`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from local_hub.hub import LocalHub

__all__ = ["hub_for_commands"]


@contextmanager
def hub_for_commands(folder: Path) -> Iterator[LocalHub]:
    """A Hub that huggingface_hub asks here, with cache, token and DYNQUANT_HOME in `folder`."""
    with LocalHub() as hub, pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
            patch.delenv(name, raising=False)
        patch.setenv("DYNQUANT_HOME", str(folder))
        # Read at import, so the environment would come too late when another test imported it.
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(folder / "hf"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        patch.setattr(constants, "AGENT_HARNESSES_PATH", str(folder / "harnesses.json"))
        yield hub
        close_session()
