"""The model card: Markdown that says what a quantized model is, from its facts alone."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections import defaultdict

from dynquant.core import verdict
from dynquant.core.facts import ModelFacts, QuantizedRow, TextFacts
from dynquant.core.figures import count, percent, significant, size, with_error
from dynquant.core.formats import QuantFormat
from dynquant.core.front_matter import LICENSE_KEYS, REPO_ID, front_matter
from dynquant.core.markdown import DASH, clean, code, escape, fenced, folded, link, table
from dynquant.core.plan import LayerProfile

__all__ = ["render_card"]

HUB_URL = "https://huggingface.co"
NO_BREAK_SPACE = "\u00a0"
MAX_OPEN_LAYERS = 40
"""A longer table of layers is folded."""

_COMMIT_SHA = re.compile(r"[0-9a-f]{40}")

_FILES_NOTE = (
    "`dynquant/plan.json`, `dynquant/cost_table.json` and `dynquant/report.json` in this repo "
    "hold the chosen formats, the cost of every format, and all figures."
)
_METHODS = {
    "fisher": (
        "what each format of each layer costs, in nats of KL divergence, from the Fisher "
        "information of its outputs and the second moments of its inputs"
    ),
    "block_output": (
        "the error of each block's output. This is the fallback for a model whose blocks could "
        "not be differentiated; it does not know how much a block matters for the result"
    ),
    "alignment": (
        "how the gradient of the loss lines up with the error that quantizing a layer brings, "
        "with two bit widths"
    ),
}
_ENCODERS = {
    "gptq": "weighted least squares for scales and biases, then error feedback (GPTQ)",
    "wls": "scales and biases by least squares, weighted by the inputs of the layer",
    "minmax": "scales and biases from the smallest and largest weight of a group",
}


def render_card(
    facts: ModelFacts, *, picture_light: str, picture_dark: str, repo_id: str | None = None
) -> str:
    """Render the card: YAML front matter and Markdown.

    Args:
        facts: The model; `rows` holds the original first and this model last.
        picture_light: Path within the repo of the picture for light pages.
        picture_dark: The same for dark pages.
        repo_id: Repo that the model is published as; without it the examples use the
            model's name, as for a folder on this machine.
    """
    sections = (
        f"# {escape(facts.name)}",
        f"> **{verdict.recommendation(facts)}**",
        _introduction(facts),
        _size_section(facts),
        _quality_section(facts),
        _notes_section(facts),
        _bits_section(facts, picture_light, picture_dark),
        _use_section(facts, repo_id),
        _making_section(facts),
        _license_section(facts),
    )
    return f"---\n{front_matter(facts)}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def _introduction(facts: ModelFacts) -> str:
    return (
        f"This is {_source_link(facts)}, quantized with dynquant to "
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
        ("Fits", verdict.fitting_macs(facts.memory_bytes)),
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
    compared = [verdict.comparison(facts.rows[-1], row) for row in facts.rows[1:-1]]
    return "\n\n".join(
        (
            "## Quality",
            table(header, rows, align="lrrrrrr"),
            legend,
            *compared,
            verdict.prediction(facts),
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
    unbroken = (figure.replace(" ", NO_BREAK_SPACE) for figure in figures)
    return (f"**{label}**" if ours else label, *unbroken)


def _notes_section(facts: ModelFacts) -> str:
    notes = [f"- {escape(note)}" for note in facts.notes if clean(note)]
    return "\n".join(("## Notes", "", *notes)) if notes else ""


def _bits_section(facts: ModelFacts, picture_light: str, picture_dark: str) -> str:
    light, dark = (html.escape(clean(path)) for path in (picture_light, picture_dark))
    picture = (
        "<picture>\n"
        f'  <source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
        f'  <img alt="Stored bits per weight of each layer, block by block" src="{light}">\n'
        "</picture>"
    )
    return "\n\n".join(
        ("## Bits of each layer", picture, _formats_table(facts), _layers_table(facts))
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
    rows = [_layer_row(layer, facts.plan.formats[layer.path]) for layer in facts.layers]
    header = ("Layer", "Format", "Stored bits per weight", "Weights", cost)
    content = table(header, rows, align="llrrr")
    if len(rows) <= MAX_OPEN_LAYERS:
        return content
    return folded(f"All {len(rows)} layers", content)


def _layer_row(layer: LayerProfile, fmt: QuantFormat) -> tuple[str, ...]:
    # Uniform and `alignment` plans may use formats that were never priced.
    known = fmt in layer.formats[: len(layer.costs_nats)]
    return (
        code(layer.path),
        code(fmt.name),
        _bpw(layer.stored_bits(fmt) / layer.num_weights),
        count(layer.num_weights),
        significant(layer.cost_nats(fmt), 3) if known else DASH,
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


def _making_section(facts: ModelFacts) -> str:
    versions = ", ".join(
        f"{escape(tool)} {escape(version)}" for tool, version in sorted(facts.versions.items())
    )
    rows = (
        ("Source", _source_link(facts)),
        ("Revision", _revision(facts)),
        ("Family", code(facts.model_type)),
        ("Layers chosen by", _explained(facts.method, _METHODS)),
        ("Encoder", _explained(facts.encoder, _ENCODERS)),
        ("Calibration text", _text_facts(facts.calibration)),
        ("Evaluation text", _text_facts(facts.evaluation)),
        ("Seed", str(facts.seed)),
        ("Versions", versions or DASH),
    )
    return "\n\n".join(
        (
            "## How it was made",
            table(("", ""), rows, align="ll"),
            "The same model again:",
            fenced((facts.command,), "bash"),
            _FILES_NOTE,
        )
    )


def _license_section(facts: ModelFacts) -> str:
    fields = {key: clean(facts.license_fields.get(key, "")) for key in LICENSE_KEYS}
    named = [escape(value) for value in (fields["license"], fields["license_name"]) if value]
    sentences = [
        f"The license of the original holds for this model too: {', '.join(named)}."
        if named
        else "The original names no license; ask its authors before you rely on it."
    ]
    if target := fields["license_link"]:
        sentences.append(f"Its text: {link(target, target) if '://' in target else code(target)}.")
    if _is_linkable(facts):
        sentences.append(
            f"What the model was made for, its languages and its limits are on the "
            f"{link('card of the original', f'{HUB_URL}/{facts.source}')}."
        )
    return f"## License\n\n{' '.join(sentences)}"


def _is_linkable(facts: ModelFacts) -> bool:
    return facts.source_is_repo and REPO_ID.fullmatch(facts.source) is not None


def _source_link(facts: ModelFacts) -> str:
    if _is_linkable(facts):
        return link(facts.source, f"{HUB_URL}/{facts.source}")
    return code(facts.source)


def _revision(facts: ModelFacts) -> str:
    if _is_linkable(facts) and _COMMIT_SHA.fullmatch(facts.revision_sha):
        sha = facts.revision_sha
        return f"[`{sha}`]({HUB_URL}/{facts.source}/tree/{sha})"
    return code(facts.revision_sha)


def _explained(name: str, explanations: dict[str, str]) -> str:
    return f"{code(name)}: {explanations[name]}" if name in explanations else code(name)


def _text_facts(text: TextFacts) -> str:
    chat = ", in the model's chat format" if text.chat_formatted else ""
    return (
        f"{code(text.name)}, {text.num_tokens:,} tokens in windows of "
        f"{text.window_tokens:,}{chat}, sha256 {code(text.sha256)}"
    )


def _bpw(value: float) -> str:
    """Bits per weight with one decimal at least and no trailing zeros."""
    whole, _, decimals = f"{value:.3f}".partition(".")
    return f"{whole}.{decimals.rstrip('0') or '0'}"
