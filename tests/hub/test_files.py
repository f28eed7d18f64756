"""The files of a repo that are downloaded, and mirrors of the Hub with fewer metadata."""

from __future__ import annotations

import json
import shutil

import pytest
from huggingface_hub import ModelInfo

from dynquant.errors import HubUnavailableError, InvalidModelError
from dynquant.hub import HubModels
from dynquant.hub.headers import tensors_in
from dynquant.hub.listing import Listing
from dynquant.model.limits import MAX_SMALL_FILE_BYTES, MAX_SMALL_FILES
from local_hub.faults import Fault
from tests.hub.conftest import safetensors_bytes, tiny_files

pytestmark = pytest.mark.hub

REPO = "alice/tiny"
SHARD = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 9\n" % (b"0" * 64)


def index_of(**weight_map: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": weight_map}).encode()


def weights(fill: int, *names: str) -> bytes:
    return safetensors_bytes({name: ("U8", [64], bytes([fill]) * 64) for name in names})


def files_in(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_named_templates_and_every_spelling_of_a_license_are_fetched_and_no_code(models, hub):
    wanted = {
        "tekken.json": b"{}",
        "sentencepiece.bpe.model": b"x",
        "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
        "MODEL_LICENSE": b"x",
        "LICENSE AGREEMENT.pdf": b"x",
        "LICENSES/MIT.txt": b"x",
        "processor_config.json": b"{}",
    }
    unwanted = {
        "additional_chat_templates/run.py": b"raise SystemExit",
        "additional_chat_templates/a/b.jinja": b"x",
        "original/tokenizer.model": b"x",
        "params.json": b"{}",
        "mtp.safetensors": b"x",
    }
    hub.add(REPO, tiny_files(**wanted, **unwanted))
    folder = models.fetch(REPO).folder
    assert files_in(folder) == set(tiny_files(**wanted))
    shutil.rmtree(folder / "additional_chat_templates")
    assert files_in(models.fetch(REPO).folder) == set(tiny_files(**wanted))


@pytest.mark.parametrize("name", ["additional_chat_templates/a\n.jinja", "x" * 300 + ".jinja"])
def test_a_hostile_name_is_refused_before_any_download(models, hub, name):
    hub.add(REPO, tiny_files(**{name: b"x"}))
    with pytest.raises(InvalidModelError, match="a name that no model needs"):
        models.fetch(REPO)
    assert hub.asked("/(resolve|cdn)/") == []


def test_a_path_that_leads_out_is_never_asked_for(models, hub, tmp_path):
    for name in ("../outside.jinja", "additional_chat_templates/../../../outside.jinja"):
        hub.add(REPO, tiny_files(**{name: b"x"}))
    models.fetch(REPO)
    assert hub.asked("outside") == []
    assert not list(tmp_path.rglob("outside*"))


def test_more_templates_than_any_model_needs_are_refused(models, hub):
    many = {f"additional_chat_templates/{i}.jinja": b"" for i in range(MAX_SMALL_FILES)}
    hub.add(REPO, tiny_files(**many))
    with pytest.raises(InvalidModelError, match="no model needs more than 1,000"):
        models.fetch(REPO)


# Copies of the weights


def test_of_two_copies_of_the_weights_only_the_one_of_the_index_is_downloaded(models, hub):
    files = {
        "model.safetensors": weights(1, "a", "b"),
        SHARD: weights(2, "a", "b"),
        INDEX: index_of(a=SHARD, b=SHARD),
    }
    hub.add(REPO, tiny_files(**files))
    folder = models.fetch(REPO).folder
    assert files_in(folder) == set(tiny_files(**files)) - {"model.safetensors"}
    assert (folder / SHARD).read_bytes() == files[SHARD]
    folder = models.fetch_headers(REPO).folder
    assert [path.name for path in folder.glob("*.safetensors")] == [SHARD]


def test_a_file_that_the_index_forgets_is_downloaded(models, hub):
    files = {"model.safetensors": weights(1, "a"), "model-2.safetensors": weights(1, "b")}
    hub.add(REPO, tiny_files(**files, **{INDEX: index_of(a="model.safetensors")}))
    assert {*files} <= files_in(models.fetch(REPO).folder)


def test_a_sidecar_of_the_index_is_not_downloaded_and_costs_no_request(models, hub):
    index = index_of(**{"a.weight": "model.safetensors", "mtp": "mtp.safetensors"})
    hub.add(REPO, tiny_files(**{INDEX: index, "mtp.safetensors": weights(1, "mtp")}))
    assert "mtp.safetensors" not in files_in(models.fetch(REPO).folder)
    assert hub.asked("mtp") == []
    assert len(hub.asked("GET .*/model.safetensors$")) == 1


@pytest.mark.parametrize("index", [None, index_of(a="model-0.safetensors")])
def test_copies_that_nothing_decides_between_are_refused_before_their_download(models, hub, index):
    files = {"model.safetensors": weights(1, "a"), SHARD: weights(2, "a")}
    hub.add(REPO, tiny_files(**files, **({} if index is None else {INDEX: index})))
    for fetch in (models.fetch, models.fetch_headers):
        with pytest.raises(InvalidModelError, match="both in") as caught:
            fetch(REPO)
        assert "ownload" not in str(caught.value)


def test_an_index_of_files_that_the_repo_lacks_is_refused_before_the_download(models, hub):
    index = index_of(**{"a.weight": "model.safetensors", "z": "model-2.safetensors"})
    hub.add(REPO, tiny_files(**{INDEX: index}))
    with pytest.raises(InvalidModelError, match=r"such as 'model-2\.safetensors'"):
        models.fetch(REPO)


def test_an_index_that_is_none_is_refused(models, hub):
    hub.add(REPO, tiny_files(**{INDEX: b"{"}))
    with pytest.raises(InvalidModelError, match="not a valid index"):
        models.fetch(REPO)


@pytest.mark.parametrize("header", [b"", b"not json", b"[1]", b"3", b"\xff"])
def test_what_is_no_header_names_no_tensors(header):
    with pytest.raises(InvalidModelError, match="'a' has no valid header"):
        tensors_in("a", bytes(8) + header)


def test_a_pointer_of_git_lfs_in_a_repo_is_told_as_such(models, hub):
    hub.add(REPO, tiny_files(**{"model.safetensors": POINTER}))
    with pytest.raises(InvalidModelError, match="pointer of Git LFS"):
        models.fetch_headers(REPO)


# Mirrors


def test_a_mirror_without_sizes_is_asked_for_them_file_by_file(models, hub, tmp_path):
    hub.add(REPO, tiny_files())
    told = models.look_up(REPO)
    hub.tells_sizes = False
    with HubModels(endpoint=hub.url, cache_dir=tmp_path) as others:
        asked = others.look_up(REPO)
    assert told.etags["model.safetensors"]
    assert asked.etags["model.safetensors"] == ""
    needed = {name: told.sizes[name] for name in (*told.weights, *told.others)}
    assert {name: asked.sizes[name] for name in needed} == needed


def test_from_a_mirror_without_sizes_headers_and_models_come_as_from_the_hub(models, hub):
    files = tiny_files(**{"additional_chat_templates/a.jinja": b"x"})
    hub.add(REPO, files)
    hub.tells_sizes = False
    header_file = models.fetch_headers(REPO).folder / "model.safetensors"
    assert header_file.stat().st_size == len(files["model.safetensors"])
    folder = models.fetch(REPO).folder
    assert {name: (folder / name).read_bytes() for name in files_in(folder)} == files


def test_a_large_file_of_a_mirror_without_sizes_is_refused_unread(models, hub, tmp_path):
    large = tmp_path / "large"
    with large.open("wb") as stream:
        stream.truncate(MAX_SMALL_FILE_BYTES + 1)
    hub.add(REPO, {**tiny_files(), "tokenizer.model": large})
    hub.tells_sizes = False
    with pytest.raises(InvalidModelError, match=r"'tokenizer\.model' is larger than"):
        models.fetch(REPO)
    assert hub.asked("GET .*/resolve/") == []


def test_a_mirror_that_never_tells_a_size_says_so_when_planning(models, hub):
    hub.add(REPO, tiny_files())
    hub.tells_sizes = False
    elsewhere = {"Location": "https://storage.example/x"}  # and not the size of the file on the Hub
    hub.faults.append(Fault("HEAD .*/model.safetensors", status=302, headers=elsewhere))
    with pytest.raises(HubUnavailableError, match="does not tell the size of 'model"):
        models.fetch_headers(REPO)


def test_a_mirror_that_lists_no_files_says_so_and_not_that_there_are_no_weights():
    with pytest.raises(HubUnavailableError, match="does not list the files of 'alice/tiny'"):
        Listing.of(ModelInfo(id=REPO, sha="a" * 40, tags=[]))
