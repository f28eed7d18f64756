"""A local Hub, and huggingface_hub's own client talking to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, close_session, constants

from local_hub import LocalHub

TOKEN, OTHER_TOKEN, READ_TOKEN = "hf_alice", "hf_bob", "hf_alice_reads"


@pytest.fixture
def client_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Keep the client from this machine's token and cache, and from xet."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "hf-home"
    # Read at import, so the environment would come too late when another test imported it.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(home / "harnesses.json"))
    yield home
    close_session()


@pytest.fixture
def talk_to(client_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[LocalHub], None]:
    def point_client_at(hub: LocalHub) -> None:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    return point_client_at


@pytest.fixture
def hub(talk_to: Callable[[LocalHub], None]) -> Iterator[LocalHub]:
    with LocalHub() as hub:
        hub.add_user("alice", token=TOKEN, orgs={"team": "write", "club": "read"})
        hub.add_user("bob", token=OTHER_TOKEN)
        hub.add_user("alice", token=READ_TOKEN, role="read")
        talk_to(hub)
        yield hub


@pytest.fixture
def alice(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def bob(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=OTHER_TOKEN)


@pytest.fixture
def nobody(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=False)


@pytest.fixture
def http(hub: LocalHub) -> Iterator[httpx2.Client]:
    """For what the client does not do by itself."""
    with httpx2.Client(base_url=hub.url, headers={"authorization": f"Bearer {TOKEN}"}) as client:
        yield client
