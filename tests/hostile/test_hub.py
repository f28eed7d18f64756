"""Hostile repos are refused before any download, in bounded memory."""

from __future__ import annotations

import json
import resource
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import close_session, constants

from dynquant.errors import InvalidModelError, RequestError
from dynquant.hub import HubModels
from local_hub import LocalHub
from tests.hardening import long_form
from tests.hub.conftest import tiny_files

pytestmark = [pytest.mark.harden("hostile models"), pytest.mark.hub]

REPO = "eve/model"
MAX_GROWTH_BYTES = 3_000_000_000


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LocalHub]:
    with LocalHub() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield hub
        close_session()


@pytest.fixture
def models(hub, tmp_path) -> Iterator[HubModels]:
    with HubModels(endpoint=hub.url, cache_dir=tmp_path / "cache", sleep=lambda _: None) as models:
        yield models


def refusal(hub: LocalHub, models: HubModels, files: dict[str, bytes]) -> str:
    """The refusal of a repo with these files, by `fetch` and by `fetch_headers`."""
    hub.add(REPO, files)
    sentences = set()
    for fetch in (models.fetch_headers, models.fetch):
        with pytest.raises(RequestError) as caught:
            fetch(REPO)
        sentences.add(str(caught.value))
    assert len(sentences) == 1
    sentence = sentences.pop()
    assert sentence.isprintable()
    assert sentence.endswith(".")
    assert len(sentence) < 500
    return sentence


@pytest.mark.parametrize(
    "name",
    [
        "vocab\n.json",
        "LICENSE\x1b[2J.txt",
        "additional_chat_templates/\u202eajnij.jinja",
        "model\u200b.safetensors",
        "tokenizer" + "x" * 201 + ".txt",
    ],
)
def test_a_name_that_is_made_to_mislead_is_refused(hub, models, name, harden):
    assert "a name that no model needs" in refusal(hub, models, tiny_files(**{name: b"{}"}))
    assert hub.asked("resolve") == []
    harden("refused")


@pytest.mark.parametrize(
    "name", ["../evil.json", "../../model.safetensors", "LICENSES/../../evil.txt"]
)
def test_a_name_that_leads_out_of_the_folder_is_not_asked_for(hub, models, name, tmp_path):
    hub.add(REPO, tiny_files(**{name: b"evil"}))
    source = models.fetch(REPO)
    assert not any("evil" in path.name for path in tmp_path.rglob("*"))
    assert hub.asked("evil") == []
    assert (source.folder / "config.json").is_file()


def test_a_repo_of_very_many_shards_is_refused(hub, models, harden):
    names = [f"model-{n:05d}-of-05001.safetensors" for n in range(5_001)]
    sentence = refusal(hub, models, tiny_files(**dict.fromkeys(names, b"x")))
    assert "5,002 files" in sentence
    assert hub.asked("resolve") == []
    harden("refused")


def test_headers_that_are_large_only_together_are_refused(hub, models, harden):
    header = json.dumps({"__metadata__": {"x": "a" * 9_000_000}}).encode()
    shard = len(header).to_bytes(8, "little") + header
    names = [f"model-{n:05d}-of-00012.safetensors" for n in range(12)]
    hub.add(REPO, tiny_files(**{"model.safetensors": None}, **dict.fromkeys(names, shard)))
    with pytest.raises(InvalidModelError, match="50 MB in all"):
        models.fetch_headers(REPO)
    harden("refused")


def test_a_large_file_that_is_read_whole_is_refused_undownloaded(hub, models, tmp_path, harden):
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(201_000_000)
    hub.add(REPO, {**tiny_files(), "tokenizer.json": tmp_path / "large"})
    with pytest.raises(InvalidModelError, match="larger than 200 MB"):
        models.fetch_headers(REPO)
    assert hub.asked("resolve") == []
    harden("refused")


def test_a_large_file_that_planning_reads_is_refused_undownloaded(hub, models, tmp_path, harden):
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(31_000_000)
    hub.add(REPO, {**tiny_files(), "README.md": tmp_path / "large"})
    with pytest.raises(InvalidModelError, match=r"'README.md' is larger than 30 MB"):
        models.fetch_headers(REPO)
    assert hub.asked("resolve") == []
    harden("refused")


class _Million(BaseHTTPRequestHandler):
    """A Hub with one repo of a million files without weights."""

    def do_GET(self) -> None:
        one = '{"rfilename":"%07d.json","size":1,"blobId":"x"}'
        files = ",".join(one % number for number in range(1_000_000))
        weights = '{"rfilename":"model.safetensors","size":1},{"rfilename":"config.json","size":1}'
        about = '{"id":"%s","modelId":"%s","sha":"%s","siblings":[%s,%s]}'
        content = (about % (REPO, REPO, "0" * 40, weights, files)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@long_form
def test_a_repo_of_a_million_tiny_files_is_refused(tmp_path, harden):
    """The Hub lists them all; the memory for that is bounded, and no request follows."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with HTTPServer(("127.0.0.1", 0), _Million) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        models = HubModels(endpoint=endpoint, cache_dir=tmp_path, token=False)
        with pytest.raises(InvalidModelError, match="1,000,002 files"):
            models.fetch(REPO)
        thread.join()
    close_session()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    assert grown < MAX_GROWTH_BYTES
    harden("refused")


CARDS = {
    "tags that are no list": "tags: {a: 1}\nlicense: 5\nbase_model: {x: y}",
    "figures that are none": "model-index: [1, {name: 5}, {results: x}]",
    "a language that is a number": "language: 5\ndatasets: [1, 2]\nlicense: [{a: b}]",
    "a script": "license: <script>alert(1)</script>\nlicense_link: javascript:alert(1)",
}


@pytest.mark.parametrize("name", CARDS)
def test_a_hostile_card_does_not_keep_a_model_from_being_fetched(hub, models, name):
    hub.add(REPO, tiny_files(**{"README.md": f"---\n{CARDS[name]}\n---\n# M\n".encode()}))
    source = models.fetch_headers(REPO)
    assert len(str(source.license_fields)) < 1_000
    assert isinstance(source.folder, Path)
