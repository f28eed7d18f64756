from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors import safe_open

from dynquant.errors import (
    HubUnavailableError,
    InvalidModelError,
    InvalidOptionError,
    ModelNotFoundError,
    StorageFullError,
    UnsupportedModelError,
)
from dynquant.hub import HubModels
from local_hub import LocalHub
from tests.hub.conftest import LICENSE_CARD, SAMPLE, TINY, safetensors_bytes, tiny_files

pytestmark = pytest.mark.hub

LICENSE_FIELDS = {"license": "other", "license_name": "nice", "license_link": "https://x.org/l"}
REPO = "alice/tiny"
SECRET = "hf_very_secret"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# A local folder


def test_a_local_folder_is_taken_as_it_is(tmp_path, models):
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "README.md").write_text(LICENSE_CARD)
    for fetch in (models.fetch, models.fetch_headers):
        source = fetch(str(folder))
        assert (source.name, source.folder, source.is_repo) == ("my-model", folder, False)
        assert source.revision_sha == ""
        assert source.license_fields == LICENSE_FIELDS


@pytest.mark.parametrize("card", ["no front matter", "---\n- a list\n---\n", "---\n{[\n---\n"])
def test_a_readme_that_nobody_can_read_carries_no_license(tmp_path, models, card):
    (tmp_path / "README.md").write_text(card)
    assert models.fetch(str(tmp_path)).license_fields == {}


def test_the_current_folder_has_its_own_name(tmp_path, models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert models.fetch(".").name == tmp_path.name


def test_an_existing_folder_wins_over_a_repo_of_that_name(tmp_path, models, hub, monkeypatch):
    hub.add(REPO, tiny_files())
    (tmp_path / REPO).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not models.fetch(REPO).is_repo
    assert hub.requests == []


@pytest.mark.parametrize(
    "model",
    [
        "./nowhere",
        "/nowhere/at/all",
        "~/nowhere-" + "x" * 20,
        "~no-such-user/x",
        "a/b/c",
        r"C:\models",
        "",
        " ",
        "/" + "x" * 5000,
        "https://huggingface.co/Qwen/Qwen3-0.6B",
    ],
)
def test_what_looks_like_a_path_is_not_asked_for_on_the_hub(models, hub, model):
    with pytest.raises(ModelNotFoundError, match="Pass "):
        models.fetch(model)
    assert hub.requests == []


def test_a_file_is_not_a_model_folder(models, tmp_path):
    file = tmp_path / "model.gguf"
    file.touch()
    with pytest.raises(ModelNotFoundError, match="is a file"):
        models.fetch(str(file))


def test_a_local_folder_has_no_revisions(models, tmp_path):
    with pytest.raises(InvalidOptionError, match="revision"):
        models.fetch(str(tmp_path), revision="main")


# Fetching from the Hub


def test_fetch_downloads_only_what_is_needed_at_the_pinned_commit(models, hub):
    unwanted = {
        "pytorch_model.bin": b"x",
        "consolidated.00.safetensors": b"x",
        "original/params.json": b"{}",
        "original/model.safetensors": b"x",
        "modeling_tiny.py": b"raise SystemExit",
        "weights.gguf": b"x",
        ".gitattributes": b"",
        "pic.png": b"x",
    }
    wanted = {"tokenizer.model": b"x", "vocab.txt": b"x", "chat_template.jinja": b"x"}
    license_files = {"NOTICE": b"x", "USE_POLICY.md": b"x"}
    repo = hub.add(REPO, tiny_files(**unwanted, **wanted, **license_files), card_data=None)
    first = repo.branches["main"]
    repo.commit({"config.json": b"{}"})

    source = models.fetch(REPO, revision=first)

    assert (source.name, source.is_repo, source.revision_sha) == (REPO, True, first)
    assert names(source.folder) == set(tiny_files(**wanted, **license_files))
    assert (source.folder / "config.json").read_bytes() == tiny_files()["config.json"]
    assert all(first in request.path for request in hub.asked("GET .*/(resolve|tree|cdn)/"))


def test_the_license_fields_come_from_the_card(models, hub):
    card = {"license": ["mit", "apache-2.0"], "license_link": 7, "tags": ["x"]}
    hub.add(REPO, tiny_files(), card_data=card)
    assert models.fetch(REPO).license_fields == {"license": "mit, apache-2.0"}


def test_a_second_fetch_downloads_nothing(models, hub):
    hub.add(REPO, tiny_files())
    first = models.fetch(REPO)
    hub.requests.clear()
    assert models.fetch(REPO) == first
    assert hub.asked("/(resolve|cdn)/") == []


def test_a_renamed_repo_gets_its_name_of_today(models, hub):
    hub.add(REPO, tiny_files())
    hub.renamed["old/name"] = REPO
    assert models.fetch("old/name").name == REPO


def test_storage_sees_no_token(models, hub, tmp_path):
    hub.tokens[SECRET] = "alice"
    hub.add(REPO, tiny_files(), private=True)
    with HubModels(endpoint=hub.url, token=SECRET, cache_dir=tmp_path / "own") as mine:
        mine.fetch(REPO)
        mine.fetch_headers(REPO)
    assert hub.asked("GET /cdn/")
    assert all(request.token is None for request in hub.asked("/cdn/"))
    assert all(request.token == SECRET for request in hub.asked("/(api|resolve)/.*tiny"))


@pytest.mark.skipif(not SAMPLE.exists(), reason="no ../shared/models/sample-2m here")
def test_a_fetched_model_equals_the_one_on_the_hub(models, hub):
    hub.add("alice/sample-2m", SAMPLE)
    folder = models.fetch("alice/sample-2m").folder
    for path in SAMPLE.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_the_environment_names_hub_cache_and_token(hub, tmp_path):
    hub.tokens[SECRET] = "alice"
    hub.add(REPO, tiny_files(), private=True)
    code = f"from dynquant.hub import HubModels; print(HubModels().fetch({REPO!r}).folder)"
    home = tmp_path / "home"
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_TOKEN": SECRET}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(home)
    assert SECRET not in done.stdout + done.stderr


# Refusals


@pytest.mark.parametrize(
    ("files", "error", "words"),
    [
        ({"model.safetensors": None, "pytorch_model.bin": b"x"}, UnsupportedModelError, "PyTorch"),
        ({"model.safetensors": None, "a.q4.gguf": b"x"}, UnsupportedModelError, "GGUF"),
        (
            {"model.safetensors": None, "unet/model.safetensors": b"x"},
            UnsupportedModelError,
            "not named",
        ),
        (
            {
                "model.safetensors": None,
                "adapter_model.safetensors": b"",
                "adapter_config.json": b"",
            },
            UnsupportedModelError,
            "adapter",
        ),
        ({"model.safetensors": None}, InvalidModelError, "no weights"),
        ({"config.json": None}, InvalidModelError, r"config\.json"),
    ],
)
def test_a_repo_that_cannot_work_is_refused_before_any_download(models, hub, files, error, words):
    hub.add(REPO, tiny_files(**files))
    for fetch in (models.fetch, models.fetch_headers):
        with pytest.raises(error, match=words):
            fetch(REPO)
    assert hub.asked("/(resolve|cdn)/") == []


def test_no_such_repo(models):
    with pytest.raises(ModelNotFoundError, match="There is no model 'alice/none'"):
        models.fetch("alice/none")


@pytest.mark.parametrize("model", ["a--b", "-x/y", "x.git", "two words", "x" * 97, "nul\0byte"])
def test_no_valid_id(models, hub, model):
    with pytest.raises(ModelNotFoundError, match="cannot be the id"):
        models.fetch(model)
    assert hub.requests == []


def test_a_private_repo_is_a_missing_one_to_others(models, hub):
    hub.add(REPO, tiny_files(), private=True)
    with pytest.raises(ModelNotFoundError, match="or it is private"):
        models.fetch(REPO)


def test_no_such_revision(models, hub):
    hub.add(REPO, tiny_files())
    with pytest.raises(ModelNotFoundError, match="no revision 'v9'"):
        models.fetch(REPO, revision="v9")


@pytest.mark.parametrize("token", [False, SECRET])
def test_a_gated_repo_says_where_to_accept_its_terms(hub, tmp_path, token):
    hub.tokens[SECRET] = "bob"
    hub.add(REPO, tiny_files(), gated=True)
    with HubModels(endpoint=hub.url, token=token, cache_dir=tmp_path) as models:
        for fetch in (models.fetch, models.fetch_headers):
            with pytest.raises(ModelNotFoundError, match=f"gated.*{hub.url}/{REPO}, .*HF_TOKEN"):
                fetch(REPO)
    assert hub.asked("/cdn/") == []


def test_a_disabled_repo(models, hub):
    hub.add(REPO, tiny_files(), disabled=True)
    with pytest.raises(ModelNotFoundError, match="disabled"):
        models.fetch(REPO)


def test_a_token_that_the_hub_does_not_know(hub, tmp_path):
    hub.add(REPO, tiny_files())
    with (
        HubModels(endpoint=hub.url, token=SECRET, cache_dir=tmp_path) as models,
        pytest.raises(ModelNotFoundError, match="does not accept the token") as caught,
    ):
        models.fetch(REPO)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "words"), [(403, "may not read"), (404, "There is no model"), (451, "status 451")]
)
def test_other_refusals_are_not_tried_again(models, hub, pauses, status, words):
    hub.add(REPO, tiny_files())
    hub.fail("GET /api/models", status=status)
    with pytest.raises(ModelNotFoundError, match=words):
        models.fetch(REPO)
    assert pauses == []


def test_a_full_disk_is_noticed_before_the_download(hub, tmp_path):
    hub.add(REPO, tiny_files(**{"pytorch_model.bin": bytes(10**6)}))
    needed = sum(map(len, tiny_files().values())) - len(tiny_files()["config.json"])

    def fetch(free):
        with HubModels(
            endpoint=hub.url, cache_dir=tmp_path / "cache", free_bytes=lambda _: free
        ) as models:
            models.fetch(REPO)

    with pytest.raises(StorageFullError, match=r"takes \d+ bytes.*has \d+ bytes free.*HF_HOME"):
        fetch(needed - 1)
    assert hub.asked("/cdn/") == []
    fetch(needed)
    fetch(0)  # all files are in the cache already


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_cache_that_cannot_be_written(hub, tmp_path):
    hub.add(REPO, tiny_files())
    tmp_path.chmod(0o500)
    with (
        HubModels(endpoint=hub.url, cache_dir=tmp_path / "cache") as models,
        pytest.raises(StorageFullError, match="cannot be written"),
    ):
        models.fetch(REPO)


# The Hub fails


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 500}, "status 500"),
        ({"status": 503}, "status 503"),
        ({"status": 429}, "asked too often. Try again later"),
        ({"status": 429, "headers": {"Retry-After": "7"}}, "in 7 seconds"),
        ({"status": 429, "headers": {"ratelimit": '"api";r=0;t=9'}}, "in 9 seconds"),
        ({"action": "reset"}, "broke"),
        ({"action": "truncate"}, "broke"),
        ({"action": "html"}, "answers in its place"),
    ],
)
def test_a_hub_that_stays_down_is_told_as_such(models, hub, fault, words):
    hub.add(REPO, tiny_files())
    hub.fail("GET /api/models", **fault)
    with pytest.raises(HubUnavailableError, match=words):
        models.fetch(REPO)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"status": 502}, [1, 2]),
        ({"action": "reset"}, [1, 2]),
        ({"status": 429, "headers": {"Retry-After": "5"}}, [5, 5]),
    ],
)
def test_a_hub_that_recovers_is_asked_again(models, hub, pauses, fault, expected):
    hub.add(REPO, tiny_files())
    hub.fail("GET /api/models", times=2, **fault)
    assert models.fetch(REPO).name == REPO
    assert pauses == expected


def test_a_long_pause_is_left_to_the_person(models, hub, pauses):
    hub.add(REPO, tiny_files())
    hub.fail("GET /api/models", status=429, headers={"Retry-After": "300"})
    with pytest.raises(HubUnavailableError, match="in 300 seconds"):
        models.fetch(REPO)
    assert pauses == []


@pytest.mark.parametrize("action", ["truncate", "reset"])
def test_a_download_that_is_cut_goes_on(models, hub, action):
    content = safetensors_bytes({"w": ("U8", [10**6], os.urandom(10**6))})
    hub.add(REPO, tiny_files(**{"model.safetensors": content}))
    hub.fail("GET /cdn/", action=action, times=1)
    folder = models.fetch(REPO).folder
    assert (folder / "model.safetensors").read_bytes() == content


def test_a_file_whose_storage_fails_is_told_as_such(models, hub):
    hub.add(REPO, tiny_files())
    hub.fail("GET /cdn/", status=500)
    with pytest.raises(HubUnavailableError, match="status 500"):
        models.fetch(REPO)


def test_a_slow_hub_runs_into_the_limit(models, hub, monkeypatch):
    hub.add(REPO, tiny_files())
    monkeypatch.setattr("dynquant.hub.models.TIMEOUT_SECS", 0.2)
    hub.fail("GET /api/models", action="slow", secs=5)
    with pytest.raises(HubUnavailableError, match="too long"):
        models.fetch(REPO)


def test_no_network_at_all(tmp_path, pauses):
    with (
        HubModels(endpoint="http://127.0.0.1:9", cache_dir=tmp_path, sleep=pauses.append) as models,
        pytest.raises(HubUnavailableError, match="cannot be reached"),
    ):
        models.fetch(REPO)


def test_offline_mode_is_obeyed(models, hub, pauses, monkeypatch):
    hub.add(REPO, tiny_files())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubUnavailableError, match="HF_HUB_OFFLINE"):
        models.fetch(REPO)
    assert hub.requests == []
    assert pauses == []


# Headers only


def test_headers_come_without_weights(models, hub):
    big = safetensors_bytes({"w": ("U8", [3 * 10**6], bytes(3 * 10**6))})
    hub.add(REPO, tiny_files(**{"model.safetensors": big}), card_data={"license": "mit"})
    source = models.fetch_headers(REPO)
    header_file = source.folder / "model.safetensors"
    assert names(source.folder) == {"config.json", "README.md", "model.safetensors"}
    assert source.license_fields == {"license": "mit"}
    assert header_file.stat().st_size == len(big)
    assert header_file.stat().st_blocks * 512 < 10**6
    assert sum(request.num_bytes for request in hub.asked("/cdn/")) <= 100_001


@pytest.mark.parametrize("pad", [1, 8, 64])
def test_a_header_folder_has_the_header_of_the_real_file(models, hub, tmp_path, pad):
    tensors = {"ä.weight": ("F32", [2, 3], bytes(24)), "s": ("I64", [], bytes(8))}
    real = tmp_path / "real.safetensors"
    real.write_bytes(safetensors_bytes(tensors, pad))
    hub.add(REPO, tiny_files(**{"model.safetensors": real.read_bytes()}))
    header_file = models.fetch_headers(REPO).folder / "model.safetensors"
    assert header_file.stat().st_size == real.stat().st_size
    with safe_open(header_file, "np") as theirs, safe_open(real, "np") as ours:
        assert theirs.keys() == ours.keys()
        assert theirs.metadata() == ours.metadata()
        for name in ours.keys():  # noqa: SIM118
            assert theirs.get_slice(name).get_shape() == ours.get_slice(name).get_shape()
            assert theirs.get_slice(name).get_dtype() == ours.get_slice(name).get_dtype()


def test_a_header_that_does_not_fit_the_first_request(models, hub):
    tensors = {f"layer.{i}.weight": ("U8", [1], b"x") for i in range(3000)}
    content = safetensors_bytes(tensors)
    assert int.from_bytes(content[:8], "little") > 100_000
    hub.add(REPO, tiny_files(**{"model.safetensors": content}))
    with safe_open(models.fetch_headers(REPO).folder / "model.safetensors", "np") as file:
        assert len(file.keys()) == 3000


@pytest.mark.skipif(not TINY.exists(), reason="no ../shared/models/tiny-qwen3 here")
def test_the_checks_of_a_folder_work_on_header_folders(models, hub):
    folder_module = pytest.importorskip("dynquant.quant.mlx.folder")
    headers = pytest.importorskip("dynquant.quant.mlx.headers")
    hub.add("alice/tiny-qwen3", TINY)
    folder = models.fetch_headers("alice/tiny-qwen3").folder
    assert folder_module.check_folder(folder) == folder_module.check_folder(TINY)
    for real in TINY.glob("*.safetensors"):
        assert headers.read_header(folder / real.name) == headers.read_header(real)


def test_a_truncated_file_stays_truncated(models, hub):
    folder_module = pytest.importorskip("dynquant.quant.mlx.folder")
    hub.add(REPO, tiny_files(**{"model.safetensors": tiny_files()["model.safetensors"][:-1]}))
    with pytest.raises(InvalidModelError, match="truncated"):
        folder_module.check_folder(models.fetch_headers(REPO).folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"short", (10**9).to_bytes(8, "little") + b"{}", (99).to_bytes(8, "little") + b"{}"],
)
def test_a_file_shorter_than_its_header_is_told_as_such(models, hub, content):
    hub.add(REPO, tiny_files(**{"model.safetensors": content}))
    with pytest.raises(InvalidModelError, match="header"):
        models.fetch_headers(REPO)


@pytest.mark.parametrize("header", [b"not json", b"[]", b'{"w":{}}', b'{"w":{"shape":[-1]}}'])
def test_a_header_that_makes_no_sense_is_kept_for_the_check(models, hub, header):
    content = len(header).to_bytes(8, "little") + header + b"data"
    hub.add(REPO, tiny_files(**{"model.safetensors": content}))
    header_file = models.fetch_headers(REPO).folder / "model.safetensors"
    assert header_file.read_bytes() == content[:-4] + bytes(4)


def test_a_server_that_sends_the_whole_file_is_read_no_further_than_the_header(models, hub):
    big = safetensors_bytes({f"{i}": ("U8", [1000], bytes(1000)) for i in range(3000)})
    hub.add(REPO, tiny_files(**{"model.safetensors": big}))
    hub.ignore_ranges = True
    header_file = models.fetch_headers(REPO).folder / "model.safetensors"
    length = 8 + int.from_bytes(big[:8], "little")
    assert length > 100_000
    assert header_file.read_bytes()[:length] == big[:length]


def test_header_folders_are_reused_and_go_with_their_maker(hub: LocalHub, tmp_path):
    hub.add(REPO, tiny_files())
    with HubModels(endpoint=hub.url, cache_dir=tmp_path) as models:
        first = models.fetch_headers(REPO)
        assert models.fetch_headers(REPO) == first
        assert first.folder.exists()
    assert not first.folder.exists()


def test_header_folders_go_when_the_process_ends(hub, tmp_path):
    hub.add(REPO, tiny_files())
    code = (
        "from dynquant.hub import HubModels\n"
        f"print(HubModels(endpoint={hub.url!r}).fetch_headers({REPO!r}).folder)"
    )
    env = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert "dynquant-headers-" in done.stdout
    assert not Path(done.stdout.strip()).exists()
