"""The pieces of the Convert page as HTML."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import quote, urlsplit

from dynquant.hub.hardware import Mac
from dynquant.hub.search import FoundModel
from dynquant.report.forecast import TargetForecast
from dynquant.report.hub_address import is_hugging_face
from dynquant.report.numbers import count, counted, size
from dynquant.report.quality_summary import MAC_MEMORY_GIB
from dynquant.web import markup
from dynquant.web.labels import duration
from dynquant.web.model_lookup import ModelPreview
from dynquant.web.orders import Outcome
from dynquant.web.queue_summary import QueueSummary

__all__ = [
    "about_model",
    "forecasts_view",
    "introduction",
    "macs_note",
    "memory_choices",
    "model_label",
    "nothing_chosen",
    "outcome_view",
    "preview_view",
    "queue_note",
]


_NUM_OFFERED = 6


def introduction(hub_url: str) -> str:
    """The head of the page, which names the Hub where it is not huggingface.co."""
    hub, there = "the Hugging Face Hub", ""
    if not is_hugging_face(hub_url):
        hub = f"the Hub at {markup.link(urlsplit(hub_url).netloc, hub_url)}"
        there = " It is published on that Hub."
    return (
        "<h1>Quantize a model for your Mac</h1>"
        f'<p class="dq-lead">Choose a model from {hub} and its new size. Every layer gets the '
        "precision that it needs; the result has exactly the size you asked for, and runs in "
        f"stock mlx-lm.{there}</p>"
    )


def nothing_chosen(offered: Sequence[FoundModel]) -> str:
    """A placeholder for the preview, with models to choose by a click."""
    sentence = "Choose a model to see its size, memory and expected quality."
    if not offered:
        return markup.empty("No model chosen", sentence)
    links = "".join(
        f'<li><a href="./?model={quote(each.repo_id)}">{markup.text(each.repo_id)}</a> '
        f"<small>{markup.text(about_model(each))}</small></li>"
        for each in offered[:_NUM_OFFERED]
    )
    return (
        f'<div class="dq-empty"><strong>No model chosen</strong><p>{sentence}</p>'
        f'<ul class="dq-offered" aria-label="Models to choose">{links}</ul></div>'
    )


def memory_choices(macs: Sequence[Mac]) -> list[tuple[str, int]]:
    """Choices of memory as text and GiB: the visitor's Macs, then all sizes of Macs."""
    names: dict[int, list[str]] = {}
    for mac in macs:
        names.setdefault(mac.memory_gib, []).append(mac.name)
    mine = [(f"{gib} GB (your {', '.join(found)})", gib) for gib, found in names.items()]
    return mine + [(f"{gib} GB", gib) for gib in MAC_MEMORY_GIB if gib not in names]


def macs_note(macs: Sequence[Mac], *, settings_url: str) -> str:
    """A note on the source of the visitor's Macs, or on how to show a Mac."""
    if not macs:
        link = markup.link("Show your Mac on your Hugging Face profile", settings_url)
        return f"<p>{link} to have it chosen here.</p>"
    names = [f"{markup.text(mac.name)} with {mac.memory_gib}&nbsp;GB" for mac in macs]
    if len(names) == 1:
        return f"<p>Your {names[0]}, from your Hugging Face profile.</p>"
    return f"<p>Your Macs, from your Hugging Face profile: {', '.join(names)}.</p>"


def model_label(found: FoundModel) -> str:
    """A model in the list of suggestions."""
    return f"{found.repo_id} · {about_model(found)}"


def about_model(found: FoundModel) -> str:
    """Parameters and downloads of a model."""
    parts = [counted(found.downloads, "download")]
    if found.num_parameters:
        parts.insert(0, counted(found.num_parameters, "parameter"))
    return " · ".join(parts)


def preview_view(preview: ModelPreview, *, page_url: Callable[[str], str]) -> str:
    """The preview of a model; `page_url` is the address of a model's page on the Hub."""
    about = "about " if preview.is_rough else ""
    rows = [
        ("Parameters", about + count(preview.inventory.num_parameters)),
        *_tower_row(preview),
        ("Family", markup.text(preview.model_type or "unknown: the config is gated")),
        ("License", markup.text(preview.license or "not named")),
        ("Access", _access_in_words(preview)),
        ("Downloads", count(preview.downloads)),
    ]
    name = markup.link(preview.repo_id, page_url(preview.repo_id))
    return (
        f'<section class="dq-card"><h2>{name}</h2>{markup.facts(rows)}'
        f"{_notes(preview.notes)}{_existing(preview.quants, page_url)}</section>"
    )


def _access_in_words(preview: ModelPreview) -> str:
    gated = "users must accept its terms" if preview.gated == "auto" else "its owner admits users"
    if preview.is_private:
        return "private: only accounts that its owner admits may read it"
    return f"gated: {gated}" if preview.gated else "public: everyone may read it"


def outcome_view(outcome: Outcome, preview: ModelPreview) -> str:
    """The repos that a click on "Convert" makes, who may read them, and their license."""
    names = ", ".join(f"<code>{markup.text(each)}</code>" for each in outcome.repo_ids)
    license_ = (
        f"{markup.text(preview.license)}, as the original"
        if preview.license
        else "the original names none: ask its authors before you rely on it"
    )
    rows = [("Published as", names), ("Readers", _readers(outcome)), ("License", license_)]
    return f'<section class="dq-outcome">{markup.facts(rows)}</section>'


def _readers(outcome: Outcome) -> str:
    """The accounts that may read the repos of an order."""
    owner = markup.text(outcome.repo_ids[0].partition("/")[0])
    if outcome.access.is_private:
        return f"only {owner} and accounts that {owner} admits (private)"
    if outcome.access.gated == "auto":
        return "accounts that accept the terms of the original (gated)"
    return f"accounts that {owner} admits (gated)" if outcome.access.gated else "everyone (public)"


def _tower_row(preview: ModelPreview) -> list[tuple[str, str]]:
    """The parts for images or sound, which a quant keeps as they are."""
    inventory = preview.inventory
    if not inventory.tower_bits:
        return []
    tower = f"{count(inventory.num_tower_parameters)}, {size(inventory.tower_bits // 8)}"
    return [("For images or sound", f"{tower}, kept as they are")]


def _notes(notes: Sequence[str]) -> str:
    """Sentences on parts of the model that a quant lacks."""
    return "".join(f'<p class="dq-note">{markup.text(note)}</p>' for note in notes)


def _existing(quants: Sequence[FoundModel], page_url: Callable[[str], str]) -> str:
    if not quants:
        return ""
    links = "".join(
        f"<li>{markup.link(each.repo_id, page_url(each.repo_id))} "
        f"<small>{counted(each.downloads, 'download')}</small></li>"
        for each in quants
    )
    return f'<div class="dq-existing"><p>Already made, ready to download:</p><ul>{links}</ul></div>'


def forecasts_view(forecasts: Sequence[TargetForecast], preview: ModelPreview) -> str:
    """The forecast of each target."""
    return "".join(_answer(each, preview) for each in forecasts)


def _answer(target: TargetForecast, preview: ModelPreview) -> str:
    about = "about " if preview.is_rough else ""
    tiles = [
        ("Bits per weight", f"{target.target_bpw:g}", "stored, scales and biases included"),
        ("Size on disk", about + size(target.size_bytes), "never more"),
    ]
    if target.memory_bytes is None:
        tiles.append(("Memory to run", "unknown", "its config is gated"))
    else:
        needs = f"with {target.context_tokens:,} tokens of context; {target.fits}"
        tiles.append(("Memory to run", f"about {size(target.memory_bytes)}", needs))
    boxes = "".join(
        f"<div><dt>{name}</dt><dd>{markup.text(value)}<small>{markup.text(note)}</small></dd></div>"
        for name, value, note in tiles
    )
    source = (
        "measured on quants of this model"
        if target.is_measured
        else "a rule of thumb, not a measurement; small models lose more. The finished card has "
        "the figures"
    )
    return (
        f'<dl class="dq-tiles">{boxes}</dl><p class="dq-expect"><strong>Expect:</strong> '
        f"{markup.text(target.quality)} <small>({source}).</small></p>"
    )


def queue_note(queue: QueueSummary) -> str:
    """A note on when a new job would be done."""
    if not queue.num_runners:
        ahead = "No runner is running: the job will wait until a runner is started."
    elif queue.num_waiting + queue.num_running == 0:
        ahead = "The queue is empty."
    else:
        ahead = f"Jobs before it: {queue.num_running} running, at most {queue.num_waiting} waiting."
    took = (
        "No job has finished here yet, so the duration is unknown."
        if queue.job_secs is None
        else f"Recent jobs took {duration(queue.job_secs)} (median, models of any size)."
    )
    return f'<p class="dq-wait">{markup.text(ahead)} {markup.text(took)}</p>'
