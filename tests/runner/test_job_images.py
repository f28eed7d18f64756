"""A job that asks about images: a dataset of the Hub, decoded by the child."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynquant.convert import STEPS
from dynquant.errors import ImagesError, Reason, RequestError
from local_hub.texts import add_default_texts
from tests.command_line import needs_shared
from tests.pictures import picture
from tests.runner.test_job_steps import OPTIONS, hub, request, run, steps
from tests.vision import make_vision_model

pytest.importorskip("mlx_vlm")
pytestmark = [pytest.mark.hub, pytest.mark.slow, needs_shared]

__all__ = ["hub"]  # the fixture

NAME = "you/photos:default:train"
IMAGES = {"evaluation_images": "you/photos", "calibration_images": "you/others"}
SEEING = {"options": {**OPTIONS, **IMAGES}, "targets_bpw": (12.0,)}


def add_images(hub, name: str, *contents: bytes) -> None:
    rows = [{"image": {"bytes": each, "path": "a.png"}, "caption": "A cat."} for each in contents]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    files = {"data/train-00000-of-00001.parquet": stream.getvalue()}
    hub.add(name, files, kind="dataset")


def seeing_request(hub, folder: Path, **overrides):
    hub.add("org/seer", make_vision_model(folder / "seer"))
    sha = hub.repos["model", "org/seer"].at("main").sha
    return request(hub, **{"model": "org/seer", "revision": sha} | SEEING | overrides)


def test_a_job_reports_figures_on_the_images_of_a_dataset(hub, tmp_path):
    add_images(hub, "you/photos", *map(picture, range(5)))
    add_images(hub, "you/others", *map(picture, range(5, 9)))
    asked = seeing_request(hub, tmp_path)
    results: dict[str, str] = {}
    for number, step in enumerate(STEPS):
        machine = steps(hub, tmp_path / f"machine-{number % 2}", allow_files=True)
        results[step] = run(machine, step, asked, results)
    figures = json.loads(results["evaluate"])
    assert {each["num_images"] for each in figures.values()} == {5}
    (repo,) = (each for each in hub.repos if "seer-MLX" in each[1])
    files = hub.repos[repo].at("main").files
    card = files["README.md"].read().decode()
    assert f"about 5 images (`{NAME}`)" in card
    assert f"--eval-images {NAME}" in card
    assert "--calibration-images you/others:default:train" in card


def test_a_model_that_sees_nothing_is_refused_before_its_download(hub, tmp_path):
    add_images(hub, "you/photos", *map(picture, range(5)))
    add_images(hub, "you/others", *map(picture, range(5, 9)))
    with pytest.raises(RequestError, match="no part that sees images") as raised:
        run(steps(hub, tmp_path), "resolve", request(hub, **SEEING), {})
    assert raised.value.reason is Reason.UNFIT_IMAGES


@pytest.mark.harden("child and runner")
def test_an_image_of_a_dataset_that_is_none_is_named_before_the_work(hub, tmp_path, harden):
    add_images(hub, "you/photos", *map(picture, range(4)), b"none")
    add_images(hub, "you/others", *map(picture, range(5, 9)))
    asked, machine = seeing_request(hub, tmp_path), steps(hub, tmp_path)
    results: dict[str, str] = {}
    for step in ("resolve", "download"):
        results[step] = run(machine, step, asked, results)
    with pytest.raises(RequestError, match=f"'row 5 of {NAME}' is no PNG"):
        run(machine, "measure", asked, results)
    harden("refused")


def test_a_runner_for_strangers_reads_no_folder(hub, tmp_path):
    add_default_texts(hub)
    photos = tmp_path / "photos"
    photos.mkdir()
    options = {"evaluation_images": str(photos)}
    machine = steps(hub, tmp_path, allow_files=False)
    with pytest.raises(ImagesError, match="There is no folder"):
        run(machine, "resolve", request(hub, options=options), {})
