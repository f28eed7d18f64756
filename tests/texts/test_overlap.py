from __future__ import annotations

import textwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynquant.texts import overlap
from dynquant.texts.overlap import STRETCH_LETTERS, Sketch, Sketcher, is_too_much, share_of

LICENSE = """
# Permission is hereby granted, free of charge, to any person obtaining a copy of this software
# and associated documentation files, to deal in the Software without restriction.
"""


def sketch_of(*pieces: str, **options) -> Sketch:
    sketcher = Sketcher(**options)
    for piece in pieces:
        sketcher.add(piece)
    return sketcher.sketch()


def prose(num_words: int, *, seed: int) -> str:
    """Running text of a small vocabulary, in sentences and paragraphs."""
    rng = np.random.default_rng(seed)
    vocabulary = [
        f"{a}{b}" for a in ("lo", "ka", "ti", "mer", "sun") for b in ("rem", "va", "no", "")
    ]
    words = [vocabulary[i] for i in rng.integers(0, len(vocabulary), num_words)]
    return ". ".join(" ".join(words[i : i + 12]) for i in range(0, num_words, 12))


def stretches(text: str) -> set[str]:
    """The stretches by their definition, without hashes."""
    letters = "".join(filter(str.isalnum, text.casefold()))
    return {letters[i : i + STRETCH_LETTERS] for i in range(len(letters) - STRETCH_LETTERS + 1)}


# Few letters and long repeats, so that texts of this size have stretches in common.
fragments = st.sampled_from(
    ["a" * 30, "b" * 25, "ab" * 20, "Abc, ", "1 2\t3\n", "é", "日本語", "-"]
)
short_texts = st.lists(fragments, max_size=12).map("".join)


@given(short_texts, short_texts)
def test_the_share_is_that_of_stretches_compared_one_by_one(text, known):
    mine, theirs = stretches(text), stretches(known)
    expected = len(mine & theirs) / len(mine) if mine else 0.0
    assert share_of(sketch_of(text), known=sketch_of(known)) == expected


@given(st.lists(short_texts, max_size=6), st.integers(1, 200))
def test_how_a_text_is_cut_into_pieces_does_not_matter(pieces, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_CHUNK_LETTERS", chunk)
        cut = sketch_of(*pieces)
    assert cut.hashes.tolist() == sketch_of("".join(pieces)).hashes.tolist()


@given(short_texts, st.integers(1, 40), st.integers(1, 60))
def test_a_sketch_has_the_smallest_hashes_and_says_up_to_where(text, max_hashes, chunk):
    whole = sketch_of(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overlap, "_CHUNK_LETTERS", chunk)
        small = sketch_of(text, max_hashes=max_hashes)
    assert small.hashes.tolist() == whole.hashes[:max_hashes].tolist()
    assert small.limit == (2**64 - 1 if len(whole.hashes) <= max_hashes else small.hashes[-1])
    assert whole.shortened(max_hashes).hashes.tolist() == small.hashes.tolist()


def test_what_a_sketch_holds_does_not_grow_with_the_text(monkeypatch):
    monkeypatch.setattr(overlap, "_CHUNK_LETTERS", 2_000)
    sketcher = Sketcher(max_hashes=100)
    for seed in range(50):
        sketcher.add(prose(300, seed=seed))
        assert len("".join(sketcher._pieces)) < 4_000
        assert len(sketcher.sketch().hashes) <= 100


def test_the_share_of_long_texts_is_estimated_from_small_sketches():
    common, other = prose(20_000, seed=1), prose(60_000, seed=2)
    text, known = sketch_of(common + other), sketch_of(common)
    exact = share_of(text, known=known)
    assert 0.2 < exact < 0.3
    estimated = share_of(
        sketch_of(common + other, max_hashes=2_000), known=sketch_of(common, max_hashes=2_000)
    )
    assert abs(estimated - exact) < 0.06


def test_the_same_text_is_found_however_it_is_laid_out():
    text = prose(2_000, seed=1)
    sentences = text.split(". ")
    laid_out = {
        "wrapped": textwrap.fill(text, 40),
        "indented": textwrap.indent(text.replace(". ", ".\n"), "        "),
        "shouted": text.upper(),
        "as Markdown": "\n\n".join(f"- **{sentence}**" for sentence in sentences),
        "full width": text.translate({c: c + 0xFEE0 for c in range(0x21, 0x7F)}),
    }
    for other in laid_out.values():
        assert share_of(sketch_of(other), known=sketch_of(text)) == 1.0
    documents = [". ".join(sentences[i : i + 20]) for i in range(0, len(sentences), 20)]
    reordered = sketch_of(*documents[::-1])
    assert share_of(reordered, known=sketch_of(text)) > 0.9


def test_a_part_of_the_known_text_is_found_whole():
    text = prose(5_000, seed=1)
    assert share_of(sketch_of(text[9_000:11_000]), known=sketch_of(text)) == 1.0


@pytest.mark.parametrize("num_files", [1, 50])
def test_boilerplate_counts_once_however_often_it_stands_there(num_files):
    """Whole files of code begin with the same license and are different otherwise."""
    texts = [
        "".join(LICENSE + prose(400, seed=100 * i + j) for j in range(num_files)) for i in range(2)
    ]
    first, second = map(sketch_of, texts)
    if num_files == 1:  # a relevant part of this short text
        assert share_of(first, known=second) > 0.05
    else:
        assert not is_too_much(first, known=second)


def test_indentation_and_rows_of_signs_are_no_text():
    texts = [
        "\n".join(
            f"{' ' * 60}{line}\n{'-' * 80}\n{'│' * 50}" for line in prose(900, seed=i).split(". ")
        )
        for i in range(2)
    ]
    first, second = map(sketch_of, texts)
    assert share_of(first, known=second) == 0.0


def test_a_few_chance_finds_are_not_too_much():
    known = sketch_of(prose(400, seed=1))
    limit = 2**64 - 1
    two = Sketch(known.hashes[:2], limit)
    assert share_of(two, known=known) == 1.0
    assert not is_too_much(two, known=known)
    assert is_too_much(Sketch(known.hashes[:3], limit), known=known)


@pytest.mark.parametrize(("num_shared", "expected"), [(4, False), (5, False), (6, True)])
def test_more_than_five_per_cent_are_too_much(num_shared, expected):
    hashes = np.arange(100, dtype=np.uint64)
    known = Sketch(hashes[:num_shared])
    assert is_too_much(Sketch(hashes), known=known) == expected


def test_texts_without_stretches_share_nothing():
    for text in ("", "a short one", "=" * 500):
        assert share_of(sketch_of(text), known=sketch_of(text)) == 0.0


@given(short_texts, st.integers(1, 40))
def test_a_sketch_comes_back_from_an_artefact(text, max_hashes):
    sketch = sketch_of(text, max_hashes=max_hashes)
    again = Sketch.from_text(sketch.to_text())
    assert again.limit == sketch.limit
    assert again.hashes.tolist() == sketch.hashes.tolist()


def test_hashes_are_the_same_in_every_version():
    """Plans on the Hub hold them."""
    sketch = sketch_of("Call me Ishmael. Some years ago, never mind how long precisely")
    assert [f"{each:016x}" for each in sketch.hashes.tolist()] == ["eaf147f39753b782"]


@pytest.mark.parametrize("text", ["", "no base64!", "AAAA", "größe"])
def test_what_is_no_sketch_is_refused(text):
    with pytest.raises(ValueError):  # noqa: PT011  of several kinds, all the caller's
        Sketch.from_text(text)


def test_a_strangers_sketch_is_put_in_order():
    unsorted = np.array([10, 7, 3, 7, 99], dtype="<u8")
    sketch = Sketch(unsorted, 10)
    assert Sketch.from_text(sketch.to_text()).hashes.tolist() == [3, 7, 10]
