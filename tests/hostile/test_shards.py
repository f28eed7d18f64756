"""A shard that changes while it is read."""

from __future__ import annotations

import os
import shutil
from itertools import count
from pathlib import Path

import pytest

from dynquant.errors import InvalidModelError
from dynquant.quant.formats import parse_menu
from dynquant.quant.mlx.quantizer import MlxQuantizer
from dynquant.texts.documents import Text
from tests.hostile.damage import WEIGHTS
from tests.hostile.test_folders import sound  # noqa: F401

pytestmark = pytest.mark.harden("hostile models")


@pytest.fixture
def model(tmp_path, sound) -> Path:  # noqa: F811
    shutil.copytree(sound, tmp_path / "model")
    return tmp_path / "model"


def words() -> Text:
    return Text(name="words", documents=lambda: iter(["many words of a story " * 200]))


def measured(model: Path, num_bytes: int, *, in_step: int) -> None:
    """Measure a model whose shard changes to `num_bytes` in this step; 0 is before all steps."""
    quantizer = MlxQuantizer(model, name="m")
    windows = quantizer.calibration_windows(words(), 320)
    steps = count()

    def on_step(*_: object) -> None:
        if next(steps) == in_step:
            os.truncate(model / WEIGHTS, num_bytes)

    on_step()
    quantizer.measure(
        windows, menu=parse_menu("4g32,8g32"), encoder="minmax", seed=0, on_step=on_step
    )


@pytest.mark.parametrize("in_step", [0, 1])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.5])
def test_one_that_shrinks_or_grows_is_refused(model, share, in_step, harden):
    num_bytes = int((model / WEIGHTS).stat().st_size * share)
    with pytest.raises(InvalidModelError, match="changed while they were read"):
        measured(model, num_bytes, in_step=in_step)
    harden("refused")
