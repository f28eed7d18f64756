from __future__ import annotations

import json
import zlib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from dynquant.cli.wiring import check_not_calibrated_on
from dynquant.errors import ImagesError, TextError
from dynquant.quant.mlx.calibration import Windows, cut_windows
from dynquant.report.outputs import MARKER
from dynquant.texts.documents import Text
from tests.fakes import make_images

NUM_TOKENS = 640


class WordTokenizer:
    """A token per word."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return [zlib.crc32(word.encode()) % 1000 for word in text.split()]


def words(count: int, *, start: int = 0) -> str:
    return " ".join(f"w{i}" for i in range(start, start + count))


def cut(content: str, name: str = "text.txt", *, num_tokens: int = NUM_TOKENS) -> Windows:
    text = Text(name=name, documents=lambda: iter([content]))
    return cut_windows(
        text, WordTokenizer(), window_tokens=64, num_windows=num_tokens // 64, min_windows=2
    )


def folder_of(tmp_path: Path, windows: Windows, /, **changes: Any) -> Path:
    """A finished model, as far as it tells on what it was calibrated."""
    facts = {
        key: getattr(windows.facts, key)
        for key in ("name", "sha256", "num_tokens", "window_tokens", "chat_formatted")
    }
    plan = {
        "calibration": facts,
        "calibration_sketch": windows.facts.sketch,
        "request": {"calibration_tokens": NUM_TOKENS},
    }
    (tmp_path / MARKER).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / MARKER).write_text(json.dumps(plan | changes))
    return tmp_path


def check(folder: Path, content: str, name: str = "text.txt", *, num_tokens: int = 256) -> None:
    check_not_calibrated_on(
        folder,
        cut(content, name, num_tokens=num_tokens),
        lambda asked: cut(content, name, num_tokens=asked),
    )


@pytest.mark.parametrize("stored", [{}, {"calibration_sketch": ""}], ids=["sketch", "hash alone"])
def test_a_text_is_refused_for_its_content_and_never_for_its_name(tmp_path, stored):
    folder = folder_of(tmp_path, cut(words(30_000), "mine.txt"), **stored)
    check(folder, words(30_000, start=50_000), "mine.txt")
    with pytest.raises(TextError, match=r"calibrated on text that 'yours\.txt' holds"):
        check(folder, words(30_000), "yours.txt")


def test_images_that_a_model_was_calibrated_on_are_refused_under_any_name(tmp_path):
    images = make_images("photos")
    request = {"calibration_tokens": NUM_TOKENS, "calibration_images": asdict(images.facts)}
    folder = folder_of(tmp_path, cut(words(30_000)), request=request)
    windows = cut(words(30_000, start=50_000))
    renamed = replace(windows, images=replace(images, name="renamed"))
    with pytest.raises(ImagesError, match="calibrated on the images of 'renamed'"):
        check_not_calibrated_on(folder, renamed, not_cut)
    others = replace(windows, images=make_images("others"))
    check_not_calibrated_on(folder, others, not_cut)


@pytest.mark.parametrize(
    "content",
    [words(9_000, start=1_000).replace(" ", "\n"), words(20_000) + words(20_000, start=90_000)],
    ids=["a part in other lines", "a part of it"],
)
def test_a_text_that_holds_a_part_of_the_calibration_text_is_refused(tmp_path, content):
    folder = folder_of(tmp_path, cut(words(30_000)))
    with pytest.raises(TextError, match="calibrated on text that"):
        check(folder, content, "other.txt")


def not_cut(num_tokens: int) -> Windows:
    raise AssertionError(f"{num_tokens} tokens were cut")


def test_the_same_file_is_refused_however_little_of_it_is_read(tmp_path):
    windows = cut(words(200), num_tokens=128)
    facts = replace(windows.facts, source_sha256="ab" * 32)
    folder = folder_of(tmp_path, cut(words(30_000, start=1000)))
    plan = json.loads((folder / MARKER).read_text())
    plan["calibration"]["source_sha256"] = "ab" * 32
    (folder / MARKER).write_text(json.dumps(plan))
    with pytest.raises(TextError, match="calibrated on text that"):
        check_not_calibrated_on(folder, replace(windows, facts=facts), cut=not_cut)


def test_a_short_text_is_not_the_one_of_which_a_hash_alone_is_known(tmp_path):
    folder = folder_of(tmp_path, cut(words(30_000)), calibration_sketch="")
    check(folder, words(130), num_tokens=128)

    def too_short(_num_tokens: int) -> Windows:
        raise TextError("Too short.")

    check_not_calibrated_on(folder, cut(words(130), num_tokens=128), too_short)


@pytest.mark.parametrize(
    "changes",
    [
        {"calibration": None},
        {"calibration": {"name": "x"}},
        {"calibration_sketch": "no base64!"},
        {"calibration_sketch": 5},
        {"calibration_sketch": "", "request": {}},
        {"calibration_sketch": "", "request": {"calibration_tokens": "many"}},
        {"calibration_sketch": "", "request": {"calibration_tokens": 2**62}},
    ],
)
def test_a_plan_that_tells_nothing_refuses_nothing(tmp_path, changes):
    check(folder_of(tmp_path, cut(words(30_000)), **changes), words(30_000))


def test_a_folder_of_another_tool_refuses_nothing(tmp_path):
    check(tmp_path, words(3_000))
