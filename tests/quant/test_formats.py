"""Names and stored sizes of formats."""

from __future__ import annotations

import pytest

from dynquant.errors import InvalidOptionError
from dynquant.quant.formats import (
    AFFINE_BITS,
    AFFINE_GROUP_SIZES,
    DEFAULT_MENU,
    FLOAT_FORMATS,
    UNQUANTIZED,
    QuantFormat,
    parse_menu,
)

ALL_FORMATS = (*DEFAULT_MENU, *FLOAT_FORMATS)
SHAPE = (256, 512)
NUM_WEIGHTS = 256 * 512


def stored_bpw(name: str, dtype_bits: int = 16) -> float:
    return QuantFormat.from_name(name).stored_bits(SHAPE, dtype_bits) / NUM_WEIGHTS


@pytest.mark.parametrize("fmt", ALL_FORMATS, ids=lambda fmt: fmt.name)
def test_a_name_leads_back_to_its_format(fmt: QuantFormat) -> None:
    assert QuantFormat.from_name(fmt.name) == fmt


def test_names_are_distinct() -> None:
    assert len({fmt.name for fmt in ALL_FORMATS}) == len(ALL_FORMATS)


def test_the_default_menu_is_every_affine_format_and_unquantized() -> None:
    assert len(DEFAULT_MENU) == 19
    assert DEFAULT_MENU[-1] == UNQUANTIZED


@pytest.mark.parametrize(
    ("name", "dtype_bits", "expected_bpw"),
    [
        ("4g64", 16, 4.5),  # a scale and a bias of 16 bits on 64 weights: half a bit
        ("4g64", 32, 5.0),
        ("4g32", 16, 5.0),
        ("4g128", 16, 4.25),
        ("2g128", 16, 2.25),
        ("3g32", 16, 4.0),
        ("6g64", 16, 6.5),
        ("8g32", 16, 9.0),
        ("8g32", 32, 10.0),
        ("mxfp4", 16, 4.25),  # one scale of 8 bits on 32 weights
        ("mxfp4", 32, 4.25),
        ("nvfp4", 16, 4.5),  # on 16 weights
        ("mxfp8", 16, 8.25),
        ("unquantized", 16, 16.0),
        ("unquantized", 32, 32.0),
    ],
)
def test_stored_bits_match_the_count_by_hand(
    name: str, dtype_bits: int, expected_bpw: float
) -> None:
    assert stored_bpw(name, dtype_bits) == expected_bpw


@pytest.mark.parametrize("dtype_bits", [16, 32])
@pytest.mark.parametrize("group_size", AFFINE_GROUP_SIZES)
@pytest.mark.parametrize("bits", AFFINE_BITS)
def test_an_affine_format_stores_codes_scales_and_biases(
    bits: int, group_size: int, dtype_bits: int
) -> None:
    codes = bits * NUM_WEIGHTS
    scales = biases = dtype_bits * (NUM_WEIGHTS // group_size)

    stored = QuantFormat(bits, group_size).stored_bits(SHAPE, dtype_bits)

    assert stored == codes + scales + biases


@pytest.mark.parametrize("fmt", FLOAT_FORMATS, ids=lambda fmt: fmt.name)
def test_a_float_format_stores_codes_and_a_byte_per_group(fmt: QuantFormat) -> None:
    expected = fmt.bits * NUM_WEIGHTS + 8 * (NUM_WEIGHTS // fmt.group_size)

    assert fmt.stored_bits(SHAPE, 16) == expected


@pytest.mark.parametrize("fmt", ALL_FORMATS, ids=lambda fmt: fmt.name)
def test_experts_stacked_in_one_weight_are_counted_one_by_one(fmt: QuantFormat) -> None:
    assert fmt.stored_bits((8, *SHAPE), 16) == 8 * fmt.stored_bits(SHAPE, 16)


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("4g64", 128, True),
        ("4g128", 128, True),
        ("4g128", 192, False),
        ("4g64", 96, False),
        ("4g32", 96, True),
        ("nvfp4", 48, True),
        ("mxfp4", 48, False),
        ("unquantized", 7, True),
    ],
)
def test_a_format_fits_when_its_group_divides_the_input_width(
    name: str, width: int, expected: bool
) -> None:
    assert QuantFormat.from_name(name).fits((128, width)) is expected


def test_the_output_width_does_not_matter_to_the_fit() -> None:
    assert QuantFormat(4, 64).fits((7, 64))


@pytest.mark.parametrize(
    "name", ["", "7g64", "4g48", "4G64", "g64", "4g", "4", "mxfp6", "affine", "4g64 ", "-4g64"]
)
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InvalidOptionError, match="no format") as refusal:
        QuantFormat.from_name(name)

    for known in ("4g64", "2, 3, 4, 5, 6, 8", "32, 64, 128", *(f.name for f in FLOAT_FORMATS)):
        assert known in str(refusal.value)


def test_a_menu_is_sorted_and_without_repeats() -> None:
    menu = parse_menu(" 8g64, 4g32,4g64 ,,4g32")

    assert [fmt.name for fmt in menu] == ["4g32", "4g64", "8g64"]


def test_a_menu_takes_the_named_formats() -> None:
    assert set(parse_menu("mxfp4,unquantized,nvfp4,mxfp8")) == {*FLOAT_FORMATS, UNQUANTIZED}


@pytest.mark.parametrize("text", ["", "  ", ",", " , ,"])
def test_an_empty_menu_is_refused(text: str) -> None:
    with pytest.raises(InvalidOptionError, match="empty"):
        parse_menu(text)


def test_a_menu_with_one_unknown_name_is_refused() -> None:
    with pytest.raises(InvalidOptionError, match="'5g16'"):
        parse_menu("4g64,5g16")
