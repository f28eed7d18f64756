"""Numbers formatted for people."""

from __future__ import annotations

import math

from dynquant.texts.markdown import DASH

__all__ = ["count", "counted", "percent", "significant", "size", "with_error"]

_MAX_DECIMALS = 9
_UNITS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K"))


def significant(value: float, digits: int) -> str:
    """`value` with `digits` significant digits, never in powers of ten; a dash for NaN.

    Values too small for nine decimals read as a bound: `< 0.000000001`.
    """
    if not math.isfinite(value):
        return DASH
    if value == 0:
        return "0"
    if abs(value) < 10**-_MAX_DECIMALS:
        return f"< {10**-_MAX_DECIMALS:.{_MAX_DECIMALS}f}"
    return f"{value:.{_decimals(value, digits)}f}"


def with_error(value: float | None, standard_error: float | None, *, digits: int) -> str:
    """`value ± standard error`, to two digits of the error.

    Args:
        value: NaN, or None for what was not measured, reads as a dash.
        standard_error: NaN, as with a single window, reads as a dash.
        digits: Significant digits of the value if there is no error.
    """
    if value is None or not math.isfinite(value):
        return DASH
    if value == 0:  # the original compared with itself: exact for any number of windows
        return "0"
    if standard_error is None or not math.isfinite(standard_error):
        return f"{significant(value, digits)} ± {DASH}"
    if standard_error < 10**-_MAX_DECIMALS:
        return significant(value, digits)
    decimals = _decimals(standard_error, 2)
    return f"{value:.{decimals}f} ± {standard_error:.{decimals}f}"


def percent(fraction: float, *, decimals: int = 0) -> str:
    """`0.943` as `94.3 %`; a dash for NaN. Never rounded up to 100 % or down to 0 %."""
    if not math.isfinite(fraction):
        return DASH
    smallest = 10**-decimals
    if 0 < fraction < smallest / 200:
        return f"< {smallest:.{decimals}f} %"
    if 1 - smallest / 200 < fraction < 1:
        return f"> {100 - smallest:.{decimals}f} %"
    return f"{100 * fraction:.{decimals}f} %"


def size(num_bytes: int) -> str:
    """Bytes in decimal units, as disks are sold: `4.61 GB`, `434 MB`."""
    for unit, name in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if num_bytes >= unit:
            return f"{significant(num_bytes / unit, 3)} {name}"
    return f"{num_bytes} bytes"


def count(number: int) -> str:
    """A count to three digits: `8.19 B`, `152 M`; small ones in full."""
    for unit, name in _UNITS:
        if number >= unit:
            return f"{significant(number / unit, 3)} {name}"
    return str(number)


def counted(number: int, noun: str) -> str:
    """A count with its noun: `1 download`, `8.19 B parameters`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def _decimals(value: float, digits: int) -> int:
    return min(max(digits - 1 - math.floor(math.log10(abs(value))), 0), _MAX_DECIMALS)
