"""The pages as a person starts them: a runner beside them, real MLX, a Hub on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from gradio_client import Client
from playwright.sync_api import expect

from tests.waiting import PATIENCE_SECS
from tests.web.browser import settled
from tests.web.children import answering, running
from tests.web.offline import SOURCE, environment, offline_hub

pytestmark = [pytest.mark.browser, pytest.mark.hub, pytest.mark.slow]


@pytest.fixture(scope="module")
def process(tmp_path_factory) -> Iterator[tuple[str, psutil.Process]]:
    """The pages and a runner as processes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("whole")
    with offline_hub(num_documents=2) as hub:
        settings = environment(hub, folder, GRADIO_SERVER_PORT=str(port))
        with running([sys.executable, "app.py"], settings) as process:
            yield answering(f"http://127.0.0.1:{port}", process), psutil.Process(process.pid)


@pytest.fixture(scope="module")
def url(process) -> str:
    return process[0]


def test_a_model_is_converted_and_published_and_run_by_the_line_of_its_page(url, page, tmp_path):
    settled(page, url)
    page.get_by_label("Model", exact=True).click()
    page.get_by_role("option").filter(has_text=SOURCE).click()
    expect(page.locator(".dq-tiles dd").first).to_contain_text("4.5")
    page.get_by_role("button", name="Advanced").click()
    for name in ("2", "3", "5", "6", "32", "128"):  # fewer formats are measured sooner
        page.get_by_label(name, exact=True).uncheck()
    expect(page.get_by_role("alert")).to_contain_text("4.5 bits per weight cannot be met")
    page.get_by_label("Several sizes at once").fill("5")
    expect(page.locator(".dq-tiles dd").first).to_contain_text("5")
    page.get_by_role("button", name="Convert").click()
    page.wait_for_url("**/job?job=*")
    tag = page.locator("#dq-job .dq-tag")
    expect(tag).to_have_text("Published", timeout=PATIENCE_SECS * 1_000)
    expect(page.locator(".dq-card h2")).to_have_text("you/team__sample-2m-MLX-5.0bpw")
    expect(page.get_by_role("region", name="Quality beside")).to_contain_text("This model")

    (line,) = [
        each for each in page.locator(".dq-line code").all_text_contents() if "generate" in each
    ]
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = subprocess.run(
        ["sh", "-c", f"{line} --max-tokens 4"],
        env={**os.environ, "PATH": tools, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECS,
        check=True,
    )
    assert "Generation: 4 tokens" in said.stdout

    job_id = page.url.rpartition("=")[2]
    with closing(Client(url, verbose=False, httpx_kwargs={"timeout": PATIENCE_SECS})) as client:
        status = client.predict(job_id, api_name="/status")
    assert status["results"][0]["repo_id"] == "you/team__sample-2m-MLX-5.0bpw"


def test_who_stops_the_pages_stops_their_runner(process):
    _, pages = process
    runners = pages.children()
    assert len(runners) == 1
    pages.terminate()
    _, alive = psutil.wait_procs([pages, *runners], timeout=PATIENCE_SECS)
    assert alive == []
