"""The table and the picture of a benchmark's result, for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.plot import Point, Series, chart_svg
from dynquant.report.numbers import with_error

__all__ = ["markdown", "picture"]

_OURS = "dynquant"


def markdown(result: Mapping[str, Any]) -> str:
    """Rows by size, those without a result at the end, then the bars."""
    done = sorted((row for row in result["rows"] if row["quality"]), key=_order)
    failed = [row for row in result["rows"] if not row["quality"]]
    evaluation = result["evaluation"]
    about = (
        f"`{result['command']}` at revision `{result['revision']}` on {result['machine']}; "
        f"{result['calibration']['num_tokens']:,} calibration tokens for all that take them, "
        f"{evaluation['num_tokens']:,} held-out tokens in windows of "
        f"{evaluation['window_tokens']}. ± is one standard error over windows. Stored BPW is "
        "counted from the files. Seconds and peak memory (resident, all processes) are those of "
        "the whole run; where one run made several results, × says how many."
    )
    if (at_once := result.get("at_once", 1)) > 1:
        about += f" {at_once} runs shared the machine at a time, which lengthens each."
    elsewhere = [text["name"] for text in result.get("elsewhere", ())]
    columns = (
        *("quantizer", "setting", "stored BPW", "mean KL (nats)"),
        *(f"on {name}" for name in elsewhere),
        *("99 % KL", "perplexity", "top-1", "seconds (wall / CPU)", "peak memory"),
    )
    original = ("original", "", "", "0", *("0" for _ in elsewhere), "")
    original += (_perplexity(result["original"]), "100 %", "", "")
    lines = [
        f"# {result['model']}: quality at equal size ({result['form']} form)",
        "",
        about,
        "",
        _cells(columns),
        "|---" * len(columns) + "|",
        _cells(original),
        *(_line(row, elsewhere) for row in done),
        *(_line_without(row, len(elsewhere)) for row in failed),
        "",
        "| stored BPW | peer of the same size | our mean KL over its | bar | |",
        "|---|---|---|---|---|",
        *(_bar(bar) for bar in result["bars"]),
    ]
    return "\n".join(lines) + "\n"


def picture(result: Mapping[str, Any], *, dark: bool) -> str:
    """Mean KL against stored size, a line for each quantizer."""
    points = defaultdict[str, list[Point]](list)
    for row in result["rows"]:
        if row["quality"] and row["quality"]["mean_kl_nats"] > 0:
            points[_series_of(row)].append(_point(row))
    return chart_svg(
        [Series(name=n, points=p, is_ours=n.startswith(_OURS)) for n, p in sorted(points.items())],
        heading="Quality against size",
        subtitle=f"{result['model']} · lower is closer to the original · bars are ± one "
        "standard error",
        across="stored bits per weight",
        upwards="mean KL (nats)",
        dark=dark,
    )


def _order(row: Mapping[str, Any]) -> tuple[float, float]:
    return round(2 * row["stored_bpw"]) / 2, -row["quality"]["mean_kl_nats"]


def _cells(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _line(row: Mapping[str, Any], elsewhere: Sequence[str]) -> str:
    quality = row["quality"]
    strong = "**" if row["method"] == _OURS else ""
    figures = [quality, *(row["elsewhere"][name] for name in elsewhere)]
    return _cells(
        (
            f"{strong}{row['method']}{strong}",
            row["setting"],
            f"{row['stored_bpw']:.3f}",
            *(f"{strong}{_kl(each)}{strong}" for each in figures),
            f"{quality['p99_kl_nats']:.3g}",
            _perplexity(quality),
            f"{quality['top1_agreement']:.1%}",
            _secs(row),
            _peak(row),
        )
    )


def _line_without(row: Mapping[str, Any], num_elsewhere: int) -> str:
    why_not = str(row["why_not"]).replace("|", "\\|")
    empty = [""] * (3 + num_elsewhere)
    return _cells((row["method"], row["setting"], "–", why_not, *empty, _secs(row), _peak(row)))


def _bar(bar: Mapping[str, Any]) -> str:
    met = "met" if bar["met"] else "**missed**"
    return (
        f"| {bar['stored_bpw']:.3f} | {bar['peer']} | {bar['ratio']:.2f} | {bar['bar']:.2f} "
        f"| {met} |"
    )


def _series_of(row: Mapping[str, Any]) -> str:
    """A quantizer, with its recipe or effort where it has several."""
    method, setting = row["method"], row["setting"]
    if method == _OURS:
        return f"{method} {setting.partition(',')[0]}"
    return f"{method} mixed" if setting.startswith("mixed") else str(method)


def _point(row: Mapping[str, Any]) -> Point:
    quality = row["quality"]
    return Point(
        x=row["stored_bpw"],
        y=quality["mean_kl_nats"],
        error=quality["mean_kl_se_nats"],
        label=f"{row['method']} {row['setting']}: {row['stored_bpw']:.3f} bits per weight, "
        f"mean KL {_kl(quality)} nats",
    )


def _kl(quality: Mapping[str, Any]) -> str:
    return with_error(quality["mean_kl_nats"], quality["mean_kl_se_nats"], digits=3)


def _perplexity(quality: Mapping[str, Any]) -> str:
    return f"{quality['perplexity']:.2f} ± {quality['perplexity_se']:.2f}"


def _secs(row: Mapping[str, Any]) -> str:
    if not row["wall_secs"]:
        return ""
    shared = f" (× {row['num_results']})" if row["num_results"] > 1 else ""
    return f"{row['wall_secs']:.0f} / {row['cpu_secs']:.0f}{shared}"


def _peak(row: Mapping[str, Any]) -> str:
    return f"{row['peak_bytes'] / 1e9:.2f} GB" if row["peak_bytes"] else ""
