"""The model card: Markdown that describes a quantized model, from its facts alone."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType

from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import LayerProfile
from dynquant.report import quality_summary
from dynquant.report.context_section import context_section
from dynquant.report.facts import ModelFacts, QuantizedRow, SizeVariant
from dynquant.report.front_matter import REPO_ID, front_matter
from dynquant.report.hub_address import HUB_URL
from dynquant.report.numbers import count, percent, significant, size, with_error
from dynquant.report.provenance import license_section, making_section, source_link
from dynquant.report.running import use_section
from dynquant.report.speed_section import speed_section
from dynquant.texts.markdown import DASH, clean, code, escape, folded, link, table

__all__ = ["render_card"]

_PAGES = {
    "mlx-lm": "https://github.com/ml-explore/mlx-lm",
    "mlx-vlm": "https://github.com/Blaizzy/mlx-vlm",
}

NO_BREAK_SPACE = "\u00a0"


def render_card(
    facts: ModelFacts,
    *,
    picture_light: str,
    picture_dark: str,
    repo_id: str | None = None,
    repo_of: Mapping[str, str] = MappingProxyType({}),
    sizes_light: str = "",
    sizes_dark: str = "",
    hub_url: str = HUB_URL,
) -> str:
    """Render the card: YAML front matter and Markdown, with all that is long folded.

    Args:
        facts: The model; `rows` holds the original first and this model last.
        picture_light: Path within the repo of the picture for light pages.
        picture_dark: The same for dark pages.
        repo_id: Repo that the model is published as; without it the examples use the
            model's name, as for a folder on this machine.
        repo_of: Name of another size of the model → repo that it is published as.
        sizes_light: Path of the plot of sizes for light pages; empty for no plot.
        sizes_dark: The same for dark pages.
        hub_url: The Hub that the repos are on.
    """
    sections = (
        f"# {escape(facts.name)}",
        f"> **{quality_summary.recommendation(facts)}**",
        _introduction(facts, hub_url),
        use_section(facts, repo_id, hub_url=hub_url),
        _quality_section(facts),
        _size_section(facts),
        speed_section(facts),
        context_section(facts),
        _sizes_section(facts, repo_of, hub_url, sizes_light, sizes_dark),
        _notes_section(facts),
        _bits_section(facts, picture_light, picture_dark),
        making_section(facts, repo_id, hub_url=hub_url),
        license_section(facts, hub_url=hub_url),
    )
    return f"---\n{front_matter(facts)}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _introduction(facts: ModelFacts, hub_url: str) -> str:
    return (
        f"This is {source_link(facts, hub_url=hub_url)}, quantized with dynquant to "
        f"{_bpw(facts.plan.target_bpw)} bits per weight. Layers that matter more to the model "
        f"keep more bits. It runs in {_runtimes(facts)} on a Mac with Apple silicon."
    )


def _runtimes(facts: ModelFacts) -> str:
    """The libraries that run the model, and what each makes of it."""
    names = [f"stock {link(name, _PAGES[name])}" for name in facts.runtimes]
    if not facts.sees:
        return " and ".join(names)
    seeing, *others = names
    return f"{seeing}, with images," + "".join(f" and, with text alone, in {o}," for o in others)


def _size_section(facts: ModelFacts) -> str:
    original, ours = facts.rows[0], facts.rows[-1]
    share = ""
    if original.num_bytes > 0:
        share = f", {percent(ours.num_bytes / original.num_bytes)} of {size(original.num_bytes)}"
    rows = [
        (
            "Bits per weight",
            f"{ours.stored_bpw:.3f} stored, {_bpw(facts.plan.target_bpw)} requested",
        ),
        *_tower_rows(facts),
        ("Parameters", count(facts.num_parameters)),
        ("Weights on disk", f"{size(ours.num_bytes)}{share}"),
        (
            "Memory to run",
            f"{size(facts.memory_bytes)} with a context of {facts.context_tokens:,} tokens",
        ),
        ("Fits", quality_summary.fitting_macs(facts.memory_bytes)),
    ]
    return f"## Size\n\n{table(('', ''), rows, align='ll')}"


def _tower_rows(facts: ModelFacts) -> list[tuple[str, str]]:
    """The language model and the tower apart, for a model with a tower."""
    if not facts.sees:
        return []
    stored = "at 8 bits" if facts.tower == "8" else "as in the original"
    tower = f"{count(facts.num_tower_parameters)} parameters, {size(facts.tower_bytes)}, {stored}"
    return [
        ("Language model", f"{facts.language_bpw:.3f} bits per weight"),
        ("Parts for images or sound", tower),
    ]


def _quality_section(facts: ModelFacts) -> str:
    header = [
        "Model",
        "Stored bits per weight",
        "Size",
        "Perplexity",
        "Mean KL (nats)",
        "99 % KL (nats)",
        "Top-1 agreement",
    ]
    images = facts.evaluation_images
    if images is not None:
        header.append("Mean KL on images (nats)")
    rows = [
        (*_quality_row(row, ours=row is facts.rows[-1]), *([] if images is None else [_seen(row)]))
        for row in facts.rows
    ]
    quality, text = facts.rows[-1].quality, facts.evaluation
    windows = f"{quality.num_windows:,} window{'s' * (quality.num_windows != 1)}"
    legend = (
        f"Measured on {quality.num_tokens:,} tokens of held-out text in {windows} "
        f"({code(text.name)}); ± is one standard error over windows. KL is KL(original ‖ "
        "quantized) per token, 0 for an identical model. Top-1 agreement is the share of "
        "positions where both models find the same next token most likely."
    )
    if images is not None:
        legend += (
            f" On images: the same KL at the {quality.num_image_positions:,} positions behind the "
            f"image in questions about {quality.num_images:,} images "
            f"({code(images.name)}); there ± is over images."
        )
    compared = [quality_summary.comparison(facts.rows[-1], row) for row in facts.rows[1:-1]]
    return "\n\n".join(
        (
            "## Quality",
            table(header, rows, align="l" + "r" * (len(header) - 1)),
            *compared,
            folded("How this was measured", f"{legend}\n\n{quality_summary.prediction(facts)}"),
        )
    )


def _quality_row(row: QuantizedRow, *, ours: bool) -> tuple[str, ...]:
    quality = row.quality
    label = escape(row.label) or DASH
    figures = (
        significant(row.stored_bpw, 4),
        size(row.num_bytes),
        with_error(quality.perplexity, quality.perplexity_se, digits=4),
        with_error(quality.mean_kl_nats, quality.mean_kl_se_nats, digits=3),
        significant(quality.p99_kl_nats, 3),
        percent(quality.top1_agreement, decimals=1),
    )
    return (f"**{label}**" if ours else label, *map(_unbroken, figures))


def _seen(row: QuantizedRow) -> str:
    quality = row.quality
    figure = with_error(quality.image_mean_kl_nats, quality.image_mean_kl_se_nats, digits=3)
    return _unbroken(figure)


def _sizes_section(
    facts: ModelFacts,
    repo_of: Mapping[str, str],
    hub_url: str,
    picture_light: str,
    picture_dark: str,
) -> str:
    if len(facts.variants) < 2:  # noqa: PLR2004
        return ""
    header = ("Model", "Bits per weight", "Size", "Mean KL (nats)", "Top-1 agreement")
    rows = [
        _variant_row(facts, variant, _url(repo_of.get(variant.name, ""), hub_url))
        for variant in facts.variants
    ]
    picture = ""
    if picture_light and picture_dark:
        picture = _picture("Mean KL against stored size", picture_light, picture_dark)
    parts = (
        "## Other sizes",
        "Made from the same measurement:",
        table(header, rows, align="lrrrr"),
        quality_summary.choice(facts.variants),
        picture,
    )
    return "\n\n".join(filter(None, parts))


def _url(repo_id: str, hub_url: str) -> str:
    return f"{hub_url}/{repo_id}" if REPO_ID.fullmatch(repo_id) else ""


def _variant_row(facts: ModelFacts, variant: SizeVariant, url: str) -> tuple[str, ...]:
    label = link(variant.name, url) or DASH
    if variant.name == facts.name:
        label = f"**{escape(variant.name)}**"
    figures = (
        significant(variant.stored_bpw, 4),
        size(variant.num_bytes),
        with_error(variant.mean_kl_nats, variant.mean_kl_se_nats, digits=3),
        percent(variant.top1_agreement, decimals=1),
    )
    return (label, *map(_unbroken, figures))


def _notes_section(facts: ModelFacts) -> str:
    notes = [f"- {escape(note)}" for note in facts.notes if clean(note)]
    return "\n".join(("## Notes", "", *notes)) if notes else ""


def _bits_section(facts: ModelFacts, picture_light: str, picture_dark: str) -> str:
    alt = "Stored bits per weight of each layer, block by block"
    picture = _picture(alt, picture_light, picture_dark)
    content = "\n\n".join((picture, _formats_table(facts), _layers_table(facts)))
    return f"## Bits of each layer\n\n{folded(f'All {len(facts.layers)} layers', content)}"


def _picture(alt: str, picture_light: str, picture_dark: str) -> str:
    light, dark = (html.escape(clean(path)) for path in (picture_light, picture_dark))
    return (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img alt="{alt}" src="{light}">\n'
        "</picture>"
    )


def _formats_table(facts: ModelFacts) -> str:
    chosen: dict[QuantFormat, list[LayerProfile]] = defaultdict(list)
    for layer in facts.layers:
        chosen[facts.plan.formats[layer.path]].append(layer)
    rows = []
    for fmt in sorted(chosen):
        weights = sum(layer.num_weights for layer in chosen[fmt])
        stored = sum(layer.stored_bits(fmt) for layer in chosen[fmt])
        rows.append(_format_row(facts, code(fmt.name), stored / weights, len(chosen[fmt]), weights))
    fixed = facts.num_parameters - sum(layer.num_weights for layer in facts.layers)
    if fixed > 0:
        rows.append(_format_row(facts, "never quantized (norms and the like)", None, None, fixed))
    header = ("Format", "Stored bits per weight", "Layers", "Weights", "Share")
    legend = "`4g64` is 4 bits a weight, with a scale and a bias for every 64."
    return f"{table(header, rows, align='lrrrr')}\n\n{legend}"


def _format_row(
    facts: ModelFacts, name: str, bpw: float | None, num_layers: int | None, num_weights: int
) -> tuple[str, ...]:
    return (
        name,
        DASH if bpw is None else _bpw(bpw),
        DASH if num_layers is None else str(num_layers),
        count(num_weights),
        percent(num_weights / facts.num_parameters) if facts.num_parameters > 0 else DASH,
    )


def _layers_table(facts: ModelFacts) -> str:
    cost = "Predicted cost (nats)" if facts.method == "fisher" else "Predicted cost"
    rows = [_layer_row(facts, layer) for layer in facts.layers]
    header = ("Layer", "Format", "Stored bits per weight", "Weights", cost)
    return table(header, rows, align="llrrr")


def _layer_row(facts: ModelFacts, layer: LayerProfile) -> tuple[str, ...]:
    fmt = facts.plan.formats[layer.path]
    return (
        code(layer.path),
        code(fmt.name),
        _bpw(layer.stored_bits(fmt) / layer.num_weights),
        count(layer.num_weights),
        significant(facts.cost_nats(layer), 3),
    )


def _bpw(value: float) -> str:
    """Bits per weight with one decimal at least and no trailing zeros."""
    whole, _, decimals = f"{value:.3f}".partition(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def _unbroken(figure: str) -> str:
    return figure.replace(" ", NO_BREAK_SPACE)
