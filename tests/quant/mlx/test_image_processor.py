"""Which tokens stand behind an image, however a family's processor spells it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.quant.mlx.image_processor import num_text

IMAGE, OTHER_IMAGE = 100, -200
TEXTS = st.lists(st.integers(0, 9), max_size=6)


@pytest.mark.parametrize(
    ("tokens", "own", "expected"),
    [
        ([1, 50, IMAGE, IMAGE, IMAGE, 51, 2, 3], [1, 50, IMAGE, 51, 2, 3], 4),
        ([1, IMAGE, 2, 3], [1, IMAGE, 2, 3], 3),
        ([1, 2, IMAGE, IMAGE, 3], [1, 2, IMAGE, 3], 2),
        ([60, 50, 61, IMAGE, IMAGE, 50, 2, 3], [IMAGE, 2, 3], 2),
        ([IMAGE, IMAGE, 62, IMAGE, 63, 2, 3], [IMAGE, 2, 3], 2),
        ([1, OTHER_IMAGE, 2, 3], [1, IMAGE, 2, 3], 2),
        ([1, IMAGE, IMAGE], [1, IMAGE], 1),
    ],
    ids=[
        "expanded in place (Qwen)",
        "one token, seen by cross-attention (Mllama)",
        "the image last",
        "marks around each tile (Idefics)",
        "rows with ends (Pixtral)",
        "a number that no token has (LLaVA)",
        "nothing behind it",
    ],
)
def test_what_is_behind_the_image_is_text_of_the_prompt(tokens, own, expected):
    assert num_text(tokens, own, {IMAGE}) == expected


@given(TEXTS, st.integers(1, 20), TEXTS)
def test_an_expanded_image_leaves_its_last_token_and_the_text_behind_it(before, num_parts, behind):
    tokens = [0, *before, *[IMAGE] * num_parts, *behind]
    assert num_text(tokens, [*before, IMAGE, *behind], {IMAGE}) == 1 + len(behind)


@given(TEXTS, st.lists(st.integers(20, 29), min_size=1), TEXTS)
def test_an_image_in_tokens_that_the_config_does_not_name_leaves_the_text(before, parts, behind):
    tokens = [*before, *parts, *behind]
    assert num_text(tokens, [*before, IMAGE, *behind], ()) == len(behind)
