"""Folders as models: their names, and the folders of huggingface_hub's cache."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dynquant.errors import InvalidOptionError, ModelNotFoundError
from dynquant.hub import HubModels
from dynquant.hub.local import local_source
from dynquant.model.source import ModelSource
from local_hub import LocalHub
from tests.hub.conftest import tiny_files

REPO = "Qwen/Qwen3-0.6B"


def source_of(folder: Path | str, cache_dir: Path | None = None) -> ModelSource:
    source = local_source(str(folder), None, cache_dir=cache_dir)
    assert source is not None
    return source


def test_a_folder_goes_by_its_name_however_it_is_written(tmp_path, monkeypatch):
    folder = tmp_path / "my-model"
    (folder / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(folder)
    for written in (folder, f"{folder}/", f"{folder}/.", f"{folder}//", ".", "./", "inner/.."):
        source = source_of(written)
        assert (source.name, source.is_repo, source.is_private) == ("my-model", False, False)
    assert source_of(tmp_path / "link").name == "link"
    assert source_of("/").name == "model"


@pytest.fixture
def snapshot(hub: LocalHub, models: HubModels) -> Path:
    """A snapshot folder of huggingface_hub for one commit of REPO."""
    hub.add(REPO, tiny_files())
    folder = models.fetch(REPO).folder
    assert folder.parts[-3:-1] == ("models--Qwen--Qwen3-0.6B", "snapshots")
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hf-home" / "hub"


@pytest.mark.hub
def test_a_folder_of_the_cache_in_use_is_the_repo_at_its_commit(snapshot, cache, tmp_path, hub):
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    for written in (snapshot, f"{snapshot}/", f"{snapshot}/.", link):
        source = source_of(written, cache)
        assert (source.name, source.is_repo) == (REPO, True)
        assert source.revision_sha == hub.repos["model", REPO].branches["main"]
        assert source.license_fields["license"] == "other"
        assert source.is_private  # until the Hub is asked for its visibility


@pytest.mark.hub
def test_the_client_takes_such_a_folder_without_asking_the_hub(snapshot, models, hub):
    hub.requests.clear()
    for fetch in (models.fetch, models.fetch_headers):
        source = fetch(str(snapshot))
        assert (source.name, source.is_repo, source.folder) == (REPO, True, snapshot)
    assert hub.requests == []


@pytest.mark.hub
def test_of_another_cache_only_the_name_is_believed(snapshot, cache, tmp_path):
    shutil.copytree(cache, tmp_path / "other", symlinks=True)
    copy = tmp_path / "other" / snapshot.relative_to(cache)
    for source in (source_of(copy, cache), source_of(snapshot, None)):
        assert (source.name, source.is_repo, source.revision_sha) == (REPO, False, "")
        assert not source.is_private


def edit_blob(snapshot: Path) -> None:
    (snapshot / "config.json").write_text("{}")


def replace_link(snapshot: Path) -> None:
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text("{}")


def lead_elsewhere(snapshot: Path) -> None:
    other = snapshot.parents[3] / "elsewhere"
    other.write_bytes((snapshot / "model.safetensors").read_bytes())
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(other)


def add_file(snapshot: Path) -> None:
    (snapshot / "model-2.safetensors").write_text("more")


def rename(snapshot: Path) -> Path:
    return snapshot.rename(snapshot.with_name("main"))


@pytest.mark.hub
@pytest.mark.parametrize("change", [edit_blob, replace_link, lead_elsewhere, add_file, rename])
def test_a_folder_of_the_cache_that_was_changed_is_no_commit(snapshot, cache, change):
    source = source_of(change(snapshot) or snapshot, cache)
    assert (source.name, source.is_repo, source.revision_sha) == (REPO, False, "")


@pytest.mark.hub
def test_the_folder_of_all_commits_is_refused_with_the_id_to_pass(snapshot, cache):
    for written in (snapshot.parents[1], f"{snapshot.parents[1]}/"):
        with pytest.raises(ModelNotFoundError, match=f"Pass '{REPO}', or the folder of one commit"):
            source_of(written, cache)


@pytest.mark.hub
def test_a_folder_of_the_cache_has_its_revision_already(snapshot, cache):
    with pytest.raises(InvalidOptionError, match="only models on the Hub have revisions"):
        local_source(str(snapshot), "main", cache_dir=cache)


@pytest.mark.parametrize("name", ["models--a--b--c", "models", "models--..--x", "datasets--a--b"])
def test_folders_that_only_look_like_a_cache_keep_their_names(tmp_path, name):
    folder = tmp_path / name / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    source = source_of(folder, tmp_path)
    assert (source.name, source.is_repo) == ("0" * 40, False)
    assert source_of(tmp_path / name).name == name


def test_a_repo_without_a_namespace_has_its_name(tmp_path):
    folder = tmp_path / "models--gpt2" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    assert source_of(folder).name == "gpt2"
