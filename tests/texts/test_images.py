"""Records of questions about images."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.texts.images import ImagePrompt, ImagePrompts

PROMPTS = st.builds(
    ImagePrompt,
    name=st.text(max_size=8),
    content=st.binary(max_size=16),
    question=st.text(max_size=8),
    answer=st.text(max_size=8),
)
IMAGES = st.builds(
    ImagePrompts, name=st.text(max_size=8), prompts=st.lists(PROMPTS, max_size=4).map(tuple)
)


@given(IMAGES)
def test_images_come_back_from_json_as_they_were(images):
    assert ImagePrompts.from_json(images.to_json()) == images


@given(IMAGES, st.integers(0, 3), st.sampled_from(["content", "question", "answer"]))
def test_the_hash_changes_with_every_part_of_a_prompt(images, index, part):
    if index >= len(images.prompts):
        return
    prompts = list(images.prompts)
    was = getattr(prompts[index], part)
    other = was + (b"x" if part == "content" else "x")
    prompts[index] = replace(prompts[index], **{part: other})
    assert images.facts.sha256 != replace(images, prompts=tuple(prompts)).facts.sha256


def test_an_image_in_two_sets_is_found_under_any_name():
    first = ImagePrompts(
        name="a",
        prompts=tuple(
            ImagePrompt(name=f"{i}.png", content=bytes([i]), question="?") for i in range(3)
        ),
    )
    moved = ImagePrompt(name="other.png", content=bytes([2]), question="What?")
    assert ImagePrompts(name="b", prompts=(moved,)).shared_with(first) == "other.png"
    assert (
        replace(first, prompts=first.prompts[:2]).shared_with(
            ImagePrompts(name="b", prompts=(moved,))
        )
        is None
    )


@pytest.mark.parametrize("raw", [{}, {"name": "a", "prompts": [{"name": "x", "content": "?"}]}])
def test_other_json_is_refused(raw):
    with pytest.raises((LookupError, ValueError)):
        ImagePrompts.from_json(raw)
