"""The model card: Markdown that says what a quantized model is, from its facts alone."""

from __future__ import annotations

import html
import json
import shlex
from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType

from dynquant.quant.formats import QuantFormat
from dynquant.quant.plan import LayerProfile
from dynquant.report import quality_summary
from dynquant.report.facts import ModelFacts, QuantizedRow, SizeVariant
from dynquant.report.front_matter import REPO_ID, front_matter
from dynquant.report.numbers import count, percent, significant, size, with_error
from dynquant.report.provenance import HUB_URL, license_section, making_section, source_link
from dynquant.texts.markdown import DASH, clean, code, escape, fenced, folded, link, table

__all__ = ["render_card"]

NO_BREAK_SPACE = "\u00a0"
MAX_OPEN_LAYERS = 40
"""A longer table of layers is folded."""


def render_card(
    facts: ModelFacts,
    *,
    picture_light: str,
    picture_dark: str,
    repo_id: str | None = None,
    repo_of: Mapping[str, str] = MappingProxyType({}),
    ladder_light: str = "",
    ladder_dark: str = "",
) -> str:
    """Render the card: YAML front matter and Markdown.

    Args:
        facts: The model; `rows` holds the original first and this model last.
        picture_light: Path within the repo of the picture for light pages.
        picture_dark: The same for dark pages.
        repo_id: Repo that the model is published as; without it the examples use the
            model's name, as for a folder on this machine.
        repo_of: Name of a model of the ladder → repo that it is published as.
        ladder_light: Path of the picture of the ladder for light pages; empty for none.
        ladder_dark: The same for dark pages.
    """
    sections = (
        f"# {escape(facts.name)}",
        f"> **{quality_summary.recommendation(facts)}**",
        _introduction(facts),
        _size_section(facts),
        _quality_section(facts),
        _ladder_section(facts, repo_of, ladder_light, ladder_dark),
        _notes_section(facts),
        _bits_section(facts, picture_light, picture_dark),
        _use_section(facts, repo_id),
        making_section(facts, repo_id),
        license_section(facts),
    )
    return f"---\n{front_matter(facts)}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _introduction(facts: ModelFacts) -> str:
    return (
        f"This is {source_link(facts)}, quantized with dynquant to "
        f"{_bpw(facts.plan.target_bpw)} bits per weight. Layers that matter more to the model "
        "keep more bits. It runs in stock "
        f"{link('mlx-lm', 'https://github.com/ml-explore/mlx-lm')} on a Mac with Apple silicon."
    )


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
        ("Parameters", count(facts.num_parameters)),
        ("Weights on disk", f"{size(ours.num_bytes)}{share}"),
        (
            "Memory to run",
            f"{size(facts.memory_bytes)} with a context of {facts.context_tokens:,} tokens",
        ),
        ("Fits", quality_summary.fitting_macs(facts.memory_bytes)),
    ]
    return f"## Size\n\n{table(('', ''), rows, align='ll')}"


def _quality_section(facts: ModelFacts) -> str:
    header = (
        "Model",
        "Stored bits per weight",
        "Size",
        "Perplexity",
        "Mean KL (nats)",
        "99 % KL (nats)",
        "Top-1 agreement",
    )
    rows = [_quality_row(row, ours=row is facts.rows[-1]) for row in facts.rows]
    quality, text = facts.rows[-1].quality, facts.evaluation
    windows = f"{quality.num_windows:,} window{'s' * (quality.num_windows != 1)}"
    legend = (
        f"Measured on {quality.num_tokens:,} tokens of held-out text in {windows} "
        f"({code(text.name)}); ± is one standard error over windows. KL is KL(original ‖ "
        "quantized) per token, 0 for an identical model. Top-1 agreement is the share of "
        "positions where both models find the same next token most likely."
    )
    compared = [quality_summary.comparison(facts.rows[-1], row) for row in facts.rows[1:-1]]
    return "\n\n".join(
        (
            "## Quality",
            table(header, rows, align="lrrrrrr"),
            legend,
            *compared,
            quality_summary.prediction(facts),
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


def _ladder_section(
    facts: ModelFacts, repo_of: Mapping[str, str], picture_light: str, picture_dark: str
) -> str:
    if len(facts.ladder) < 2:  # noqa: PLR2004
        return ""
    header = ("Model", "Bits per weight", "Size", "Mean KL (nats)", "Top-1 agreement")
    rows = [_rung_row(facts, rung, repo_of.get(rung.name, "")) for rung in facts.ladder]
    picture = ""
    if picture_light and picture_dark:
        picture = _picture("Mean KL against stored size", picture_light, picture_dark)
    parts = (
        "## Other sizes",
        "Made from the same measurement:",
        table(header, rows, align="lrrrr"),
        quality_summary.choice(facts.ladder),
        picture,
    )
    return "\n\n".join(filter(None, parts))


def _rung_row(facts: ModelFacts, rung: SizeVariant, repo_id: str) -> tuple[str, ...]:
    label = escape(rung.name) or DASH
    if rung.name == facts.name:
        label = f"**{label}**"
    elif REPO_ID.fullmatch(repo_id):
        label = link(rung.name, f"{HUB_URL}/{repo_id}")
    figures = (
        significant(rung.stored_bpw, 4),
        size(rung.num_bytes),
        with_error(rung.mean_kl_nats, rung.mean_kl_se_nats, digits=3),
        percent(rung.top1_agreement, decimals=1),
    )
    return (label, *map(_unbroken, figures))


def _notes_section(facts: ModelFacts) -> str:
    notes = [f"- {escape(note)}" for note in facts.notes if clean(note)]
    return "\n".join(("## Notes", "", *notes)) if notes else ""


def _bits_section(facts: ModelFacts, picture_light: str, picture_dark: str) -> str:
    alt = "Stored bits per weight of each layer, block by block"
    picture = _picture(alt, picture_light, picture_dark)
    return "\n\n".join(
        ("## Bits of each layer", picture, _formats_table(facts), _layers_table(facts))
    )


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
    content = table(header, rows, align="llrrr")
    if len(rows) <= MAX_OPEN_LAYERS:
        return content
    return folded(f"All {len(rows)} layers", content)


def _layer_row(facts: ModelFacts, layer: LayerProfile) -> tuple[str, ...]:
    fmt = facts.plan.formats[layer.path]
    return (
        code(layer.path),
        code(fmt.name),
        _bpw(layer.stored_bits(fmt) / layer.num_weights),
        count(layer.num_weights),
        significant(facts.cost_nats(layer), 3),
    )


def _use_section(facts: ModelFacts, repo_id: str | None) -> str:
    name = clean(repo_id or facts.name)
    model = shlex.quote(name)
    shell = (
        "pip install mlx-lm",
        "",
        f'mlx_lm.generate --model {model} --prompt "Why is the sky blue?"',
        f"mlx_lm.chat --model {model}",
    )
    python = (
        "from mlx_lm import generate, load",
        "",
        f"model, tokenizer = load({json.dumps(name, ensure_ascii=False)})",
        'prompt = "Why is the sky blue?"',
        "if tokenizer.chat_template is not None:",
        '    messages = [{"role": "user", "content": prompt}]',
        "    prompt = tokenizer.apply_chat_template(",
        "        messages,",
        "        add_generation_prompt=True,",
        "        return_dict=False,",
        "    )",
        "print(generate(model, tokenizer, prompt=prompt, max_tokens=256))",
    )
    server = (f"mlx_lm.server --model {model} --port 8080",)
    where = (
        f"{code(name)} is a folder here; for the published model, put its repo id in its place. "
    )
    return "\n\n".join(
        (
            "## Use",
            f"{'' if repo_id else where}On the command line:",
            fenced(shell, "bash"),
            "In Python:",
            fenced(python, "python"),
            "As a server with an OpenAI-compatible API at `http://localhost:8080/v1`:",
            fenced(server, "bash"),
        )
    )


def _bpw(value: float) -> str:
    """Bits per weight with one decimal at least and no trailing zeros."""
    whole, _, decimals = f"{value:.3f}".partition(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"


def _unbroken(figure: str) -> str:
    return figure.replace(" ", NO_BREAK_SPACE)
