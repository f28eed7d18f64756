"""Figures on images, from the command line, on a small model that sees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import CALIBRATION, HELD_OUT, MODEL, call, needs_shared
from tests.pictures import make_pictures
from tests.vision import make_vision_model

pytest.importorskip("mlx_vlm")
pytestmark = needs_shared

TEXTS = (f"--calibration={CALIBRATION}", f"--eval={HELD_OUT}", "--eval-tokens=512")
QUICK = (*TEXTS, "--calibration-tokens=512", "--encoder=minmax", "--effort=fast")


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return make_vision_model(tmp_path_factory.mktemp("seer") / "seer")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("images") / "photos", 4)


@pytest.fixture(scope="module")
def made(source, pictures, tmp_path_factory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out")
    options = ("--bpw=12", f"--out={out}", f"--eval-images={pictures}", "--json")
    said = call("quantize", source, *QUICK, *options).check().json
    return dict(said["models"][0])


@pytest.mark.slow
def test_every_row_has_its_figure_on_the_same_images(made):
    rows = made["report"]["rows"]
    assert [row["num_images"] for row in rows] == [4, 4, 4]
    assert len({row["num_image_positions"] for row in rows}) == 1
    assert rows[0]["image_mean_kl_nats"] == 0
    assert all(row["image_mean_kl_nats"] > row["image_mean_kl_se_nats"] > 0 for row in rows[1:])
    assert made["image_mean_kl_nats"] == rows[-1]["image_mean_kl_nats"]


@pytest.mark.slow
def test_the_card_and_the_report_name_the_images(made):
    folder = Path(made["folder"])
    card = (folder / "README.md").read_text()
    assert "Mean KL on images (nats)" in card
    assert "questions about 4 images (`photos`)" in card
    assert "--eval-images photos" in card
    report = json.loads((folder / "dynquant" / "report.json").read_text())
    assert report["evaluation_images"]["name"] == "photos"
    assert str(folder.parent) not in card


@pytest.mark.slow
def test_a_finished_model_is_evaluated_again_with_the_same_figures(made, source, pictures):
    options = (f"--reference={source}", f"--eval={HELD_OUT}", "--eval-tokens=512", "--json")
    images = f"--eval-images={pictures}"
    said = call("evaluate", made["folder"], images, *options).check().json
    assert said["quantized"]["image_mean_kl_nats"] == made["image_mean_kl_nats"]
    assert said["original"]["num_images"] == 4


def refused(*words: str | Path) -> str:
    found = call("quantize", *words, *QUICK, "--bpw=12", "--out=/nonexistent/out")
    assert found.code == 2
    assert "Traceback" not in found.err
    return " ".join(found.err.split())


def test_a_folder_that_is_not_there_is_refused(source):
    assert "There is no folder 'nowhere/'" in refused(source, "--eval-images=nowhere/")


def test_a_file_in_the_place_of_the_folder_is_refused(source, pictures):
    assert "is a file. Pass a folder" in refused(source, f"--eval-images={pictures}/00.png")


def test_an_image_that_is_none_is_named(source, pictures, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(pictures, folder)
    (folder / "02.png").write_text("none")
    assert "'02.png' is no PNG, JPEG or WebP image" in refused(source, f"--eval-images={folder}")


def test_a_model_that_sees_nothing_is_refused(pictures):
    assert "no part that sees images" in refused(MODEL, f"--eval-images={pictures}")


def test_a_model_whose_tower_is_left_out_is_refused(source, pictures):
    said = refused(source, f"--eval-images={pictures}", "--text-only")
    assert "sees no images as it is converted" in said
