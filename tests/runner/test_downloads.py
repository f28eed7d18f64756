"""Downloads of jobs keep their model in the cache and release it, on a Hub on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
from huggingface_hub import close_session, constants

from dynquant.errors import HubUnavailableError
from dynquant.hub import HubDatasets, HubModels, HubPublisher, cache
from dynquant.jobs.job import StepProgress
from dynquant.jobs.request import JobRequest
from dynquant.runner.child_process import ChildCancelledError
from dynquant.runner.job_steps import JobSteps
from dynquant.texts.corpus import Corpus
from local_hub import LocalHub
from tests.hub.conftest import safetensors_bytes, tiny_files

pytestmark = pytest.mark.hub

REPO = "org/Model"
NUM_BYTES = 40 * 10**6
WEIGHTS = safetensors_bytes({"a.weight": ("U8", [NUM_BYTES], bytes(NUM_BYTES))})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LocalHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        # As in the process of a runner, also if other tests ran before.
        monkeypatch.delenv("HF_HUB_DISABLE_XET", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10 * 2**20)
        hub.add(REPO, tiny_files(**{"model.safetensors": WEIGHTS}))
        hub.announces_xet = True
        yield hub
        close_session()


class Download:
    """The download of one job, and the cache that it fills."""

    def __init__(self, hub: LocalHub, folder: Path) -> None:
        self.cache = folder / "cache"
        self.reports: list[StepProgress] = []
        self.steps = JobSteps(
            home=folder / "home",
            publisher=HubPublisher(endpoint=hub.url, token="hf_you"),
            texts=Corpus(open_dataset=HubDatasets(endpoint=hub.url).open),
            open_hub=lambda: HubModels(
                endpoint=hub.url, cache_dir=self.cache, sleep=lambda _secs: None
            ),
            max_memory_bytes=10**9,
        )
        commit = hub.repos["model", REPO].at("main")
        assert commit is not None
        self.resolved = json.dumps(
            {"published": None, "source": {"name": REPO, "revision_sha": commit.sha}, "texts": {}}
        )

    def run(self, *, is_cancelled=lambda: False) -> None:
        self.steps.run(
            "download",
            JobRequest(model=REPO, targets_bpw=(4.0,), requester="someone"),
            {"resolve": self.resolved},
            job_id="job-1",
            report=self.reports.append,
            is_cancelled=is_cancelled,
        )

    def is_held(self) -> bool:
        """Whether the model counts as in use, so that it is not removed from the cache."""
        cache.trim(self.cache, max_bytes=0)
        return cache.repo_folder(self.cache, REPO).exists()


def test_a_download_that_fails_lets_go_of_the_model(hub, tmp_path):
    download = Download(hub, tmp_path)
    hub.fail("GET /cdn/", status=500)
    held = []
    for _ in range(5):
        with pytest.raises(HubUnavailableError):
            download.run()
        held.append(psutil.Process().num_fds())
    assert held[-1] <= held[0] + 1
    assert not download.is_held()


def test_a_cancelled_download_stops_within_a_file_lets_go_of_it_and_frees_its_disk(hub, tmp_path):
    download = Download(hub, tmp_path)

    def is_cancelled() -> bool:
        return any((report.num_bytes or 0) > 10**6 for report in download.reports)

    with pytest.raises(ChildCancelledError):
        download.run(is_cancelled=is_cancelled)
    assert max(report.num_bytes or 0 for report in download.reports) < NUM_BYTES / 4
    assert not list(download.cache.rglob("*.incomplete"))
    assert not download.is_held()
